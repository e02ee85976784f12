package portmap

import (
	"os"
	"testing"
)

func TestMain(m *testing.M) {
	if p := os.Getenv(insideEnv); p != "" {
		os.Exit(inside(Protocol(p)))
	}
	os.Exit(m.Run())
}

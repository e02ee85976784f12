package relay

import (
	"net/netip"
	"os"
	"testing"

	"go.uber.org/goleak"
)

// roles are what a copy of the test binary can be in a namespace of its own.
var roles = map[string]func(){}

func TestMain(m *testing.M) {
	if role := roles[os.Getenv("OVERLAYD_TEST_ROLE")]; role != nil {
		role()
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func byUDP(a netip.AddrPort) origin { return origin{addr: a} }

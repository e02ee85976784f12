//go:build linux

package waysin_test

import (
	"testing"

	"overlayd/examples/lab/labtest"
)

func TestMain(m *testing.M) { labtest.Main(m) }

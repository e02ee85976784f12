package filter

import (
	"testing"
	"unsafe"
)

// The story says what things take; two cache lines for a flow are by design.
func TestSizes(t *testing.T) {
	if n := unsafe.Sizeof(flow{}); n != 128 {
		t.Errorf("a flow takes %d bytes", n)
	}
	if n := unsafe.Sizeof(datagram{}); n != 112 {
		t.Errorf("a datagram takes %d bytes", n)
	}
	if n := unsafe.Sizeof(Event{}); n != 216 {
		t.Errorf("an event takes %d bytes", n)
	}
}

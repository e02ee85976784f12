package relay

import (
	"bytes"
	"testing"
)

// TestCutProbes: a probe leaves alone, also from the middle of a train of data
// that is as long, or it would leave in fragments like data.
func TestCutProbes(t *testing.T) {
	tb := switchTable(t, 9)
	from := tb.from(byUDP(nodeAddr(1)))
	const size = 1000
	train := bytes.Join([][]byte{datagram(2, size, 4), datagram(2, size, 4), datagram(2, size, 9), datagram(2, size, 4)}, nil)
	for i := 2 * size; i < 3*size; i += size {
		train[i] = kindProbe
	}
	var got []int
	var probes []bool
	for rest := train; len(rest) > 0; {
		n, d := cut(from, rest, size)
		got, probes = append(got, n), append(probes, d.probe)
		rest = rest[n:]
	}
	if len(got) != 3 || got[0] != 2*size || got[1] != size || !probes[1] || probes[0] || probes[2] {
		t.Errorf("cut into %v, probes %v", got, probes)
	}
}

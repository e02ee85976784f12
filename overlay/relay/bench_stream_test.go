package relay

import (
	"bytes"
	"net/netip"
	"sync/atomic"
	"testing"
)

// BenchmarkStream moves trains of full datagrams from one TLS connection to
// another through the relay, all on loopback and on this machine's processors.
func BenchmarkStream(b *testing.B) {
	s, _ := startServer(b, netip.MustParseAddrPort("127.0.0.1:0"))
	endpoint, believe := web(b, s)
	from, to := startWebNode(b, endpoint, believe, 11), startWebNode(b, endpoint, believe, 12)
	from.waitUp()
	to.waitUp()
	var got atomic.Int64
	to.sink.Store(&got)
	const size, train = 1432, 44
	one := bytes.Repeat(datagram(12, size, 1), train)
	b.SetBytes(size * train)
	b.ResetTimer()
	sent := int64(0)
	for range b.N {
		for sent-got.Load() > 2*int64(len(one)) { // as a window does
			<-to.came
		}
		from.stream.Send(one, size)
		sent += int64(len(one))
	}
	for got.Load() < sent {
		<-to.came
	}
}

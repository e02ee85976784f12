package relay

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"overlayd/overlay/udp"
)

const (
	// writeTimeout is how long one message, 16 KiB on a slow line, may take to leave:
	// with less than that the connection is of no use, or dead.
	writeTimeout = 10 * time.Second
	// farewellTimeout is how long the last words may take.
	farewellTimeout = time.Second
	// keepAlive finds a dead TCP connection on which nothing is sent.
	keepAlive = 15 * time.Second
)

// duplex is the connection under a Stream: TLS, mostly.
type duplex interface {
	io.ReadWriteCloser
	SetDeadline(time.Time) error
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
}

// Stream carries datagrams over a connection that keeps their order, for paths
// on which UDP is blocked: the node's end and the relay's. Sending never blocks:
// what the connection does not take in time is dropped, the oldest first.
type Stream struct {
	conn   duplex   // set by newStream, then read-only
	raw    net.Conn // what is under TLS
	client bool
	in     *messages
	out    *outbox
	gone   chan struct{} // closed when the writer has ended

	mu     sync.Mutex // guards what follows, and deadlines
	closed bool
	ending bool // what waits is sent, then it is closed

	message []byte      // Read's
	trains  []udp.Train // likewise
}

// newStream starts a stream on a connection whose handshake is done. r reads
// from it: there may be a buffer in between. raw is the TCP connection below.
func newStream(conn duplex, raw net.Conn, r io.Reader, client bool) *Stream {
	tune(raw)
	s := &Stream{
		conn: conn, raw: raw, client: client,
		out: newOutbox(outboxBytes), gone: make(chan struct{}),
		message: make([]byte, maxMessage),
	}
	s.in = newMessages(r, client, s.out.pushPong)
	go s.write()
	return s
}

// Send takes a train of datagrams of size bytes each, of which the last may be
// shorter, and returns how many datagrams were dropped for it. It copies.
func (s *Stream) Send(train []byte, size int) (dropped int) { return s.out.push(train, size) }

// SendEach is Send for datagrams that do not lie in a row.
func (s *Stream) SendEach(datagrams [][]byte) (dropped int) { return s.out.pushEach(datagrams) }

// Await returns when there is room for such datagrams, but no later than after
// patience: a sender that can wait loses less to the dropping of what is old.
func (s *Stream) Await(datagrams [][]byte, patience time.Duration) { s.out.await(datagrams, patience) }

// SendControl takes a control message, which goes before all data. It reports
// whether there was room.
func (s *Stream) SendControl(frame []byte) bool { return s.out.pushUrgent(frame) }

// Read waits for a message and returns its datagrams, which are borrowed until
// the next Read. There may be trains beside an error, which ends the stream. Only
// one goroutine reads.
func (s *Stream) Read() ([]udp.Train, error) {
	n, err := s.in.message(s.message)
	if err != nil {
		return nil, s.failure(err)
	}
	s.trains, err = trains(s.trains[:0], s.message[:n])
	if err != nil {
		err = s.failure(err)
	}
	return s.trains, err
}

// failure closes the stream after an error of Read's, and makes those of an end
// that was meant one error.
func (s *Stream) failure(err error) error {
	defer s.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.ending || errors.Is(err, io.EOF) {
		return net.ErrClosed
	}
	return err
}

// write sends what is in the outbox until the stream is closed.
func (s *Stream) write() {
	defer close(s.gone)
	defer s.conn.Close()
	buf := make([]byte, maxFrameHeader, maxFrameHeader+usualMessage)
	var line pace
	for {
		b, op, ok := s.out.take(buf, line.message())
		if !ok && s.isEnding() {
			break
		}
		buf = b[:maxFrameHeader]
		if ok && s.within(writeTimeout) {
			began := time.Now()
			if _, err := s.conn.Write(finishFrame(b, op, s.client)); err == nil {
				line.wrote(len(b)-maxFrameHeader, time.Since(began))
				continue
			}
		}
		s.raw.Close() // or TLS would take its time to say goodbye to who does not listen
		break
	}
	s.Close()
}

// within gives the next write its time; false: there is none, it is closed.
func (s *Stream) within(d time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	if s.ending {
		d = farewellTimeout
	}
	return s.conn.SetWriteDeadline(time.Now().Add(d)) == nil
}

func (s *Stream) isEnding() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ending && !s.closed
}

// Finish sends what waits, then closes. It does not wait for that.
func (s *Stream) Finish() {
	s.mu.Lock()
	s.ending = true
	if !s.closed {
		s.conn.SetWriteDeadline(time.Now().Add(farewellTimeout)) // also of a write that hangs
	}
	s.mu.Unlock()
	s.out.close()
}

// Close ends the stream, and Read. What waits is lost. It never blocks.
func (s *Stream) Close() {
	s.mu.Lock()
	s.closed = true
	s.conn.SetDeadline(time.Unix(1, 0)) // wakes whoever reads or writes
	s.mu.Unlock()
	s.out.drop()
}

// Wait returns when the writer has ended, which it does after Close or Finish.
func (s *Stream) Wait() { <-s.gone }

// below returns the connection that TLS runs on.
func below(conn net.Conn) net.Conn {
	for {
		inner, ok := conn.(interface{ NetConn() net.Conn })
		if !ok {
			return conn
		}
		conn = inner.NetConn()
	}
}

// tune sets up a TCP connection for datagrams.
func tune(conn net.Conn) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return
	}
	// None of this can fail on a connection that lives.
	_ = tcp.SetNoDelay(true)
	_ = tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: keepAlive, Interval: keepAlive / 3, Count: 3})
	limitUnsent(tcp)
}

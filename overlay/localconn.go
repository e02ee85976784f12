package overlay

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"
)

// LocalConn is a connection that the daemon on this machine makes for its
// caller. For udp each Write is a datagram, and so is each Read.
type LocalConn struct {
	*net.UnixConn
	in     *bufio.Reader // what came behind the daemon's answer, and for udp all of it
	packet bool
	local  *Local
	id     string

	mu   sync.Mutex // guards what follows
	mine []byte     // the frame that is written
}

// Dial has the daemon connect to a machine of the network or to a host behind a
// gateway, as [Node.DialContext] does.
func (l *Local) Dial(ctx context.Context, network, address string) (*LocalConn, error) {
	if _, _, err := splitTarget(ctx, network, address); err != nil { // which takes no daemon to say
		return nil, err
	}
	raw, err := new(net.Dialer).DialContext(ctx, "unix", l.socket)
	if err != nil {
		return nil, l.fault(err)
	}
	c := &LocalConn{UnixConn: raw.(*net.UnixConn), in: bufio.NewReader(raw), packet: network[:min(3, len(network))] == "udp", local: l}
	stop := context.AfterFunc(ctx, func() { raw.SetDeadline(time.Unix(1, 0)) })
	err = c.upgrade(ctx, network, address)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		raw.Close()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, err
	}
	return c, nil
}

// upgrade asks for the connection and reads the answer.
func (c *LocalConn) upgrade(ctx context.Context, network, address string) error {
	q := url.Values{"network": {network}, "address": {address}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, localURL+dialPath+"?"+q.Encode(), nil)
	if err != nil {
		return fmt.Errorf("dial: %w", err)
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", dialProtocol)
	if err := req.Write(c.UnixConn); err != nil {
		return fmt.Errorf("ask the daemon: %w", err)
	}
	res, err := http.ReadResponse(c.in, req)
	if err != nil {
		return fmt.Errorf("read the daemon's answer: %w", err)
	}
	if res.StatusCode == http.StatusSwitchingProtocols {
		c.id = res.Header.Get(dialHeader)
		return nil
	}
	defer res.Body.Close()
	return readFate(res)
}

// readFate reads what is told of a connection; nil: it goes on, or ended as it
// should.
func readFate(res *http.Response) error {
	var j fateJSON
	if err := json.NewDecoder(io.LimitReader(res.Body, 1<<16)).Decode(&j); err != nil || j.Over && j.Code == 0 && res.StatusCode != http.StatusOK {
		return fault(ExitFailure, "restart the daemon, so that both are of one version", "the daemon answers %s", res.Status)
	}
	switch {
	case !j.Over:
		return errGoesOn
	case j.Code == 0:
		return nil
	}
	return &Fault{Code: j.Code, Message: j.Message, Hint: j.Hint}
}

var errGoesOn = errors.New("the connection goes on")

// Fate says how the connection ended, once Read has met its end: over, and with
// an error if it was torn.
func (c *LocalConn) Fate(ctx context.Context) (over bool, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, localURL+dialPath+"?id="+url.QueryEscape(c.id), nil)
	if err != nil {
		return true, fmt.Errorf("ask the daemon: %w", err)
	}
	res, err := c.local.http.Do(req)
	if err != nil {
		return true, fault(ExitNotRunning, "look at its log", "the daemon has ended, and with it the connection")
	}
	defer res.Body.Close()
	if err := readFate(res); !errors.Is(err, errGoesOn) {
		return true, err
	}
	return false, nil
}

// Read implements net.Conn.
func (c *LocalConn) Read(b []byte) (int, error) {
	switch {
	case c.packet:
		return c.readPacket(b)
	case c.in.Buffered() > 0:
		return c.in.Read(b)
	}
	return c.UnixConn.Read(b)
}

// readPacket reads one datagram; what b does not hold is lost, as with any
// socket.
func (c *LocalConn) readPacket(b []byte) (int, error) {
	if len(b) >= longestDatagram {
		return readDatagram(c.in, b)
	}
	buf := make([]byte, longestDatagram)
	n, err := readDatagram(c.in, buf)
	return copy(b, buf[:n]), err
}

// Write implements net.Conn.
func (c *LocalConn) Write(b []byte) (int, error) {
	if !c.packet {
		return c.UnixConn.Write(b)
	}
	if len(b) > longestDatagram {
		return 0, fault(ExitUsage, "send less at once", "%d bytes are more than a datagram holds", len(b))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mine = appendDatagram(c.mine[:0], b)
	if _, err := c.UnixConn.Write(c.mine); err != nil {
		return 0, err
	}
	return len(b), nil
}

// WriteTo implements io.WriterTo, so that the kernel may move what it can.
func (c *LocalConn) WriteTo(w io.Writer) (int64, error) {
	if c.packet {
		return io.Copy(w, struct{ io.Reader }{c})
	}
	first, err := io.CopyN(w, c.in, int64(c.in.Buffered()))
	if err != nil {
		return first, err
	}
	n, err := io.Copy(w, c.UnixConn)
	return first + n, err
}

// ReadFrom implements io.ReaderFrom, likewise.
func (c *LocalConn) ReadFrom(r io.Reader) (int64, error) {
	if c.packet {
		return io.CopyBuffer(struct{ io.Writer }{c}, r, make([]byte, longestDatagram))
	}
	return io.Copy(c.UnixConn, r)
}

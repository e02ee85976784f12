package jump

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"

	"overlayd/overlay/splice"
)

// session is a connection that has logged in.
type session struct {
	s     *Server
	conn  *ssh.ServerConn
	guest Guest
	key   []byte // that was proved
	end   func() // ends it, at once; may be called often
}

// run serves the session until the client goes or ctx ends.
func (se *session) run(ctx context.Context, chans <-chan ssh.NewChannel, reqs <-chan *ssh.Request) {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	defer se.conn.Close()
	running.Go(func() { se.answer(reqs) })
	running.Go(func() { se.watch(ctx) })
	for nc := range chans {
		if nc.ChannelType() != "direct-tcpip" {
			nc.Reject(ssh.Prohibited, refusal(nc.ChannelType()))
			continue
		}
		if !se.s.open(se) {
			nc.Reject(ssh.ResourceShortage, fmt.Sprintf("no more than %d connections of one user at a time", maxChannels))
			continue
		}
		running.Go(func() {
			defer se.s.close(se)
			se.forward(ctx, nc)
		})
	}
}

// refusal says what a kind of channel is not opened for.
func refusal(kind string) string {
	switch kind {
	case "session":
		return "no shell, commands or files here: this is a jump host, use ssh -J"
	case "direct-streamlocal@openssh.com":
		return "no Unix sockets here: this is a jump host, use ssh -J"
	}
	return "only forwarding of TCP: this is a jump host, use ssh -J"
}

// answer refuses all global requests, keepalives among them, until there are no
// more.
func (se *session) answer(reqs <-chan *ssh.Request) {
	for r := range reqs {
		if r.Type == "tcpip-forward" || r.Type == "streamlocal-forward@openssh.com" {
			se.s.o.Log.Info("ssh remote forward refused", "user", se.guest.Name, "addr", se.guest.Client)
		}
		if r.WantReply {
			r.Reply(false, nil)
		}
	}
}

// watch ends a session whose client does not answer.
func (se *session) watch(ctx context.Context) {
	tick := time.NewTicker(aliveEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		gone := time.AfterFunc(aliveEvery, se.end)
		_, _, err := se.conn.SendRequest("keepalive@openssh.com", true, nil)
		gone.Stop()
		if err != nil {
			return
		}
	}
}

// open is what a direct-tcpip channel asks for: RFC 4254 section 7.2.
type open struct {
	Host       string
	Port       uint32
	OriginHost string
	OriginPort uint32
}

// maxHost holds the longest name of the DNS.
const maxHost = 253

// parseOpen reads what a channel asks for.
func parseOpen(payload []byte) (host string, port uint16, err error) {
	var o open
	if err := ssh.Unmarshal(payload, &o); err != nil {
		return "", 0, errors.New("the request is malformed")
	}
	if o.Port == 0 || o.Port > 65535 || o.Host == "" || len(o.Host) > maxHost || plainLong(o.Host) != o.Host {
		return "", 0, errors.New("that is no host and port")
	}
	return o.Host, uint16(o.Port), nil
}

// plainLong is plain for what may be as long as a host name.
func plainLong(s string) string {
	out := ""
	for len(s) > 0 {
		n := min(len(s), 64)
		out += plain(s[:n])
		s = s[n:]
	}
	return out
}

// forward is the life of one channel.
func (se *session) forward(ctx context.Context, nc ssh.NewChannel) {
	host, port, err := parseOpen(nc.ExtraData())
	if err != nil {
		nc.Reject(ssh.ConnectionFailed, err.Error())
		return
	}
	far, err := se.s.o.Dial(ctx, se.guest, host, port)
	if err != nil {
		reason, text := rejection(err)
		nc.Reject(reason, text)
		return
	}
	ch, reqs, err := nc.Accept()
	if err != nil {
		far.Close()
		return
	}
	var requests sync.WaitGroup
	requests.Go(func() { ssh.DiscardRequests(reqs) })
	splice.Join(ctx, channelConn{ch}, far)
	requests.Wait()
}

// rejection says to the client why there is no connection.
func rejection(err error) (ssh.RejectionReason, string) {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return ssh.Prohibited, "refused by policy"
	case errors.Is(err, syscall.ECONNREFUSED):
		return ssh.ConnectionFailed, "connection refused"
	}
	return ssh.ConnectionFailed, err.Error()
}

// channelConn is a channel as a connection. Deadlines are not for it: it ends
// with its session.
type channelConn struct{ ssh.Channel }

var _ net.Conn = channelConn{}

// channelAddr is the address of neither end: a channel has none.
type channelAddr struct{}

func (channelAddr) Network() string { return "ssh" }
func (channelAddr) String() string  { return "channel" }

// LocalAddr implements net.Conn.
func (channelConn) LocalAddr() net.Addr { return channelAddr{} }

// RemoteAddr implements net.Conn.
func (channelConn) RemoteAddr() net.Addr { return channelAddr{} }

var errNoDeadline = errors.New("a channel has no deadlines")

// SetDeadline implements net.Conn.
func (channelConn) SetDeadline(time.Time) error { return errNoDeadline }

// SetReadDeadline implements net.Conn.
func (channelConn) SetReadDeadline(time.Time) error { return errNoDeadline }

// SetWriteDeadline implements net.Conn.
func (channelConn) SetWriteDeadline(time.Time) error { return errNoDeadline }

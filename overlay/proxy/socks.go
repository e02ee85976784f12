package proxy

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"overlayd/overlay/splice"
)

// SOCKS5 (RFC 1928), and its login by name and password (RFC 1929).
const (
	socksVersion = 5
	loginVersion = 1

	methodNone     = 0x00
	methodPassword = 0x02
	methodNoneFits = 0xff

	cmdConnect   = 1
	cmdBind      = 2
	cmdAssociate = 3

	atypIPv4   = 1
	atypDomain = 3
	atypIPv6   = 4
)

// The replies.
const (
	replyDone        = 0
	replyFailed      = 1
	replyForbidden   = 2
	replyNetwork     = 3
	replyHost        = 4
	replyRefused     = 5
	replyExpired     = 6
	replyNoCommand   = 7
	replyNoAddresses = 8
)

// socksReplies are the replies that say why Dial made no connection.
var socksReplies = map[Reason]byte{
	Failed: replyFailed, Forbidden: replyForbidden, NoName: replyHost,
	Refused: replyRefused, Unreachable: replyHost, TimedOut: replyExpired,
}

var (
	errMalformed = errors.New("the SOCKS request is malformed")
	errAddrType  = errors.New("the SOCKS request has an unknown kind of address")
)

// endpoint is a destination as SOCKS writes it: an address, or a name.
type endpoint struct {
	addr netip.Addr // zero: it is a name
	name string
	port uint16
}

// String returns host:port.
func (e endpoint) String() string {
	host := e.name
	if e.addr.IsValid() {
		host = e.addr.String()
	}
	return net.JoinHostPort(host, strconv.Itoa(int(e.port)))
}

// append appends the form that SOCKS has for an address, which is known here.
func (e endpoint) append(b []byte) []byte {
	switch {
	case !e.addr.IsValid():
		b = append(b, atypIPv4, 0, 0, 0, 0)
	case e.addr.Is4():
		b = append(append(b, atypIPv4), e.addr.AsSlice()...)
	default:
		b = append(append(b, atypIPv6), e.addr.AsSlice()...)
	}
	return binary.BigEndian.AppendUint16(b, e.port)
}

func endpointOf(a net.Addr) endpoint {
	at, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return endpoint{}
	}
	return endpoint{addr: at.Addr().Unmap().WithZone(""), port: at.Port()}
}

// readEndpoint reads the kind, the address and the port.
func readEndpoint(r io.Reader) (endpoint, error) {
	var buf [1 + 255 + 2]byte
	if _, err := io.ReadFull(r, buf[:1]); err != nil {
		return endpoint{}, err
	}
	var size int
	switch kind := buf[0]; kind {
	case atypIPv4:
		size = 4
	case atypIPv6:
		size = 16
	case atypDomain:
		if _, err := io.ReadFull(r, buf[:1]); err != nil {
			return endpoint{}, err
		}
		if size = int(buf[0]); size == 0 {
			return endpoint{}, errMalformed
		}
		return readRest(r, buf[:size+2], true)
	default:
		return endpoint{}, errAddrType
	}
	return readRest(r, buf[:size+2], false)
}

func readRest(r io.Reader, b []byte, name bool) (endpoint, error) {
	if _, err := io.ReadFull(r, b); err != nil {
		return endpoint{}, err
	}
	host := b[:len(b)-2]
	e := endpoint{port: binary.BigEndian.Uint16(b[len(b)-2:])}
	if !name {
		a, _ := netip.AddrFromSlice(host) // 4 or 16 bytes
		e.addr = a.Unmap()
		return e, nil
	}
	if !printable(host) {
		return endpoint{}, errMalformed
	}
	e.name = string(host)
	return e, nil
}

// printable reports whether a name has nothing that no name has: it is going to
// be shown, and to be joined with a port.
func printable(b []byte) bool {
	return !slices.ContainsFunc(b, func(c byte) bool {
		return c <= ' ' || c >= 0x7f || c == '/' || c == '%' || c == '[' || c == ']'
	})
}

// serveSOCKS serves a client that began with SOCKS's version.
func (s *Server) serveSOCKS(ctx context.Context, c *client) {
	if !s.socksLogin(ctx, c) {
		return
	}
	var head [3]byte // version, command, reserved
	if _, err := io.ReadFull(c.in, head[:]); err != nil || head[0] != socksVersion {
		s.counters.garbage.Add(1)
		return
	}
	to, err := readEndpoint(c.in)
	switch {
	case errors.Is(err, errAddrType):
		s.counters.garbage.Add(1)
		reply(c, replyNoAddresses, endpoint{})
		return
	case err != nil:
		s.counters.garbage.Add(1)
		reply(c, replyFailed, endpoint{})
		return
	}
	switch head[1] {
	case cmdConnect:
		s.socksConnect(ctx, c, to)
	case cmdAssociate:
		s.associate(ctx, c, to)
	default: // BIND: nobody inside calls a program out here
		reply(c, replyNoCommand, endpoint{})
	}
}

// socksLogin agrees on a method, and checks the login when one is needed.
func (s *Server) socksLogin(ctx context.Context, c *client) bool {
	var head [2]byte // version, number of methods
	if _, err := io.ReadFull(c.in, head[:]); err != nil {
		s.counters.slow.Add(1)
		return false
	}
	methods := make([]byte, head[1])
	if _, err := io.ReadFull(c.in, methods); err != nil {
		s.counters.slow.Add(1)
		return false
	}
	method := byte(methodNone)
	if s.o.Login != nil {
		method = methodPassword
	}
	if !slices.Contains(methods, method) {
		c.Write([]byte{socksVersion, methodNoneFits})
		s.counters.wrong.Add(1)
		return false
	}
	if _, err := c.Write([]byte{socksVersion, method}); err != nil {
		return false
	}
	if s.o.Login == nil {
		return true
	}
	name, password, err := readLogin(c.in)
	if err != nil {
		s.counters.garbage.Add(1)
		return false
	}
	if s.o.Login.matches(name, password) {
		_, err := c.Write([]byte{loginVersion, 0})
		return err == nil
	}
	s.wrongPassword(ctx)
	c.Write([]byte{loginVersion, 1})
	return false
}

// wrongPassword counts one, and waits.
func (s *Server) wrongPassword(ctx context.Context) {
	s.counters.wrong.Add(1)
	select {
	case <-ctx.Done():
	case <-time.After(wrongPasswordAfter):
	}
}

// readLogin reads name and password (RFC 1929 section 2).
func readLogin(r *bufio.Reader) (name, password string, err error) {
	version, err := r.ReadByte()
	if err != nil {
		return "", "", err
	}
	if version != loginVersion {
		return "", "", errMalformed
	}
	word := func() string {
		var n byte
		if n, err = r.ReadByte(); err != nil {
			return ""
		}
		b := make([]byte, n)
		_, err = io.ReadFull(r, b)
		return string(b)
	}
	if name = word(); err == nil {
		password = word()
	}
	return name, password, err
}

// reply answers a request; at is the address that the proxy uses for it.
func reply(c net.Conn, code byte, at endpoint) error {
	_, err := c.Write(at.append([]byte{socksVersion, code, 0}))
	return err
}

// socksConnect connects to the host and carries both directions.
func (s *Server) socksConnect(ctx context.Context, c *client, to endpoint) {
	c.SetDeadline(time.Time{})
	c.asked()
	remote, reason, _ := s.dial(ctx, "tcp", to.String())
	if remote == nil {
		reply(c, socksReplies[reason], endpoint{})
		return
	}
	defer remote.Close()
	if reply(c, replyDone, endpointOf(remote.LocalAddr())) != nil {
		return
	}
	s.join(ctx, c, remote, c.in)
}

// join carries bytes between a client and a host, as sockets, so that the kernel
// may do it. What was read ahead goes first.
func (s *Server) join(ctx context.Context, c *client, remote net.Conn, ahead ...*bufio.Reader) {
	for _, r := range ahead {
		b, _ := r.Peek(r.Buffered()) // all there
		if _, err := remote.Write(b); len(b) > 0 && err != nil {
			return
		}
	}
	splice.Join(ctx, c.Conn, remote)
}

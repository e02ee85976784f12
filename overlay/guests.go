package overlay

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sync/errgroup"

	"overlayd/overlay/coord"
	"overlayd/overlay/jump"
	"overlayd/overlay/publish"
)

const (
	sshKeyFile = "ssh_host_ed25519_key" // of the jump host, as OpenSSH keeps its own
	acmeDir    = "acme"                 // certificates of published ports, in the state directory
)

// guests serves those who come to the coordinator's machine without overlayd: by
// ssh, and through published ports. Each of their connections leaves under a
// person's address, is recorded with where it came from, and ends when that person
// may do nothing any more.
type guests struct {
	h     *Hub // set by newGuests, then read-only, like the rest above mu
	ssh   *jump.Server
	sshLn net.Listener // nil: no jump host
	ports *publish.Server
	key   string // fingerprint of the jump host's

	mu    sync.Mutex // guards conns
	conns map[*guestConn]bool
}

// newGuests makes what serves guests, and takes the jump host's port.
func (h *Hub) newGuests() (*guests, error) {
	g := &guests{h: h, conns: map[*guestConn]bool{}}
	var err error
	g.ports, err = publish.New(publish.Options{
		Dial: g.dialPublished, May: g.mayPublished, Cache: h.dir.file(acmeDir), Own: h.listen, Log: h.log,
		Login: func(ctx context.Context, from netip.Addr, name, password, code string) (string, error) {
			id, _, err := h.coord.Login(ctx, from, name, password, code)
			if p, ok := coord.AsProblem(err); ok && errors.Is(err, coord.ErrTooMany) {
				err = fmt.Errorf("%w: %s", publish.ErrWait, p.Hint)
			}
			return id, err
		},
		Holds: func(id string, at time.Time) (string, bool) { return h.coord.LoginHolds(id, at) },
		Refused: func(name string, who publish.Guest, why string) {
			g.refused(name, "expose "+who.Exposure, who.Client, why)
		},
	})
	if err != nil || h.o.SSH == "" {
		return g, err
	}
	at, err := coord.ParseListen(h.o.SSH)
	if err != nil {
		return nil, err
	}
	if at.Port() == h.listen.Port() {
		return nil, fault(ExitUsage, "e.g. --ssh :2222", "--ssh %s: port %d is the relay's own", h.o.SSH, at.Port())
	}
	signer, err := h.sshKey()
	if err != nil {
		return nil, err
	}
	g.key = ssh.FingerprintSHA256(signer.PublicKey())
	g.ssh, err = jump.New(jump.Options{
		HostKey: signer, Dial: g.dialJump, Log: h.log,
		User:    func(key []byte) (string, string, bool) { return h.coord.UserOfKey(key) },
		Refused: func(name string, client netip.AddrPort, why string) { g.refused(name, "ssh", client, why) },
	})
	if err != nil {
		return nil, err
	}
	address := at.String()
	if at.Addr().IsUnspecified() {
		address = ":" + strconv.Itoa(int(at.Port())) // of both families
	}
	if g.sshLn, err = net.Listen("tcp", address); err != nil {
		return nil, listenFault(err, "tcp", at)
	}
	h.log.Info("jump host listens", "addr", g.sshLn.Addr(), "key", g.key)
	return g, nil
}

// sshKey loads the jump host's key, or makes it at the first start.
func (h *Hub) sshKey() (ssh.Signer, error) {
	b, err := os.ReadFile(h.dir.file(sshKeyFile))
	if err == nil {
		s, err := ssh.ParsePrivateKey(b)
		if err != nil {
			return nil, h.dir.damaged(sshKeyFile, "it is no key of SSH")
		}
		return s, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read %s: %w", sshKeyFile, err)
	}
	_, k, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the jump host's key: %w", err)
	}
	block, err := ssh.MarshalPrivateKey(k, "overlayd")
	if err != nil {
		return nil, fmt.Errorf("make the jump host's key: %w", err)
	}
	if err := h.dir.write(sshKeyFile, pem.EncodeToMemory(block)); err != nil {
		return nil, err
	}
	return ssh.NewSignerFromKey(k)
}

// close gives the port back that newGuests took, when nothing is run.
func (g *guests) close() {
	if g.sshLn != nil {
		g.sshLn.Close()
	}
}

// run serves guests until ctx ends.
func (g *guests) run(ctx context.Context) error {
	var running errgroup.Group
	g.heed() // what is to be published from the start
	running.Go(func() error { return g.ports.Run(ctx) })
	running.Go(func() error { return g.look(ctx) })
	if g.ssh != nil {
		running.Go(func() error { return g.ssh.Serve(ctx, g.sshLn) })
	}
	return running.Wait()
}

// guestsEvery is how late a connection to this very machine ends at most when the
// time of what allowed it is over.
const guestsEvery = 500 * time.Millisecond

// look ends what may go on no more because time passes, until ctx ends.
func (g *guests) look(ctx context.Context) error {
	return every(ctx, guestsEvery, func(time.Time) { g.cut(g.h.coord) })
}

// heed ends what may go on no more, and opens and closes ports, after a change of
// the coordinator's records. It returns how many connections were ended.
func (g *guests) heed() (ended int) {
	c := g.h.coord
	if c == nil {
		return 0 // the change is the founding of the network
	}
	var list []publish.Exposure
	for _, e := range c.Exposures() {
		list = append(list, exposureOf(e))
	}
	ended = g.ports.Set(list)
	if g.ssh != nil {
		ended += g.ssh.Heed()
	}
	return ended + g.cut(c)
}

// cut ends the connections of whoever may do nothing any more, and those to this
// very machine that the policy allows no more: no other node's filter ends those.
// What ends with a session or a port that was just ended was counted there.
func (g *guests) cut(c *coordinator) (ended int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for conn := range g.conns {
		why := conn.over(c)
		if why == "" || !conn.why.CompareAndSwap(nil, &why) { // it may go on, or is on its way out
			continue
		}
		conn.reset()
		if !conn.within || why != whyRevoked {
			ended++
		}
	}
	return ended
}

func exposureOf(e coord.OpenExposure) publish.Exposure {
	p := publish.Exposure{
		ID: e.ID, Target: e.Target, Listen: e.Listen, Protocol: e.Protocol, Allow: e.Allow, Host: e.Host, Login: e.Login,
		Proxy: e.Proxy, User: e.UserID, Suspended: e.Suspended, Until: e.Until, Secret: e.Secret,
		Certificate: e.Certificate, Key: e.Key,
	}
	if e.TLS == coord.TLSACME {
		p.ACME = &publish.ACME{Directory: e.ACME.Directory, CA: e.ACME.CA}
	}
	return p
}

// Try implements coord.Publisher.
func (g *guests) Try(e coord.OpenExposure) error {
	p := &coord.Problem{Kind: coord.KindConflict, Hint: "choose another port with --on"}
	if g.sshLn != nil && e.Protocol != coord.ExposeUDP && g.sshLn.Addr().(*net.TCPAddr).AddrPort().Port() == e.Listen.Port() {
		p.Message = fmt.Sprintf("port %d is the jump host's", e.Listen.Port())
		return p
	}
	err := g.ports.Try(exposureOf(e))
	if err == nil {
		return nil
	}
	if p.Message = err.Error(); errors.Is(err, publish.ErrAddress) {
		p.Hint = fmt.Sprintf("leave the address away: --on :%d", e.Listen.Port())
	}
	return p
}

// State implements coord.Publisher.
func (g *guests) State(id string) (state, problem string, connections int) { return g.ports.State(id) }

// errForbidden is what a refusal by policy is for the jump host and for published
// ports.
type errForbidden struct{ error }

// Is makes it fs.ErrPermission.
func (errForbidden) Is(target error) bool { return target == fs.ErrPermission }

// Unwrap gives what was refused.
func (e errForbidden) Unwrap() error { return e.error }

func (g *guests) dialJump(ctx context.Context, who jump.Guest, host string, port uint16) (net.Conn, error) {
	return g.dial(ctx, &guestConn{g: g, user: who.ID, via: "ssh", client: who.Client, within: true}, "tcp",
		net.JoinHostPort(host, strconv.Itoa(int(port))))
}

func (g *guests) dialPublished(ctx context.Context, who publish.Guest, network, target string) (net.Conn, error) {
	return g.dial(ctx, &guestConn{
		g: g, user: who.User, since: who.Since, via: "expose " + who.Exposure, client: who.Client, within: who.Own, web: who.Web,
	}, network, target)
}

// mayPublished says why a target cannot be reached, as far as that is known here.
func (g *guests) mayPublished(who publish.Guest, network, target string) error {
	name := ""
	if who.User != "" {
		var ok bool
		if name, ok = g.h.coord.ActiveUser(who.User); !ok {
			return errForbidden{errors.New("the user is disabled")}
		}
	}
	host, port, err := splitTarget(context.Background(), network, target)
	if err != nil {
		return err
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		if addr, err = g.h.coord.HostAddr(name, host); err != nil {
			return nil // a name of the LAN: whoever dials asks there
		}
	}
	_, err = g.h.coord.Reach(name, network, netip.AddrPortFrom(addr, port))
	if p, ok := coord.AsProblem(err); ok && p.Kind == coord.KindDenied {
		return errForbidden{err}
	}
	return err
}

// webTimeout is after how long a target that acknowledges nothing is taken for
// dead, where the next request can have another connection.
const webTimeout = 20 * time.Second

// dial connects to a target for c, which is filled.
func (g *guests) dial(ctx context.Context, c *guestConn, network, target string) (net.Conn, error) {
	if c.user != "" {
		var ok bool
		if c.name, ok = g.h.coord.ActiveUser(c.user); !ok {
			return nil, errForbidden{errors.New("the user is disabled")}
		}
	}
	conn, err := g.reach(ctx, c, network, target)
	if err != nil {
		var d *DialError
		p, isProblem := coord.AsProblem(err)
		if isProblem && p.Kind == coord.KindDenied || errors.As(err, &d) && d.Reason == ReasonPolicy {
			if c.to.IsValid() {
				target = c.to.String() // as it is recorded where it is reached
			}
			g.note(c, FlowLine{Event: EventFlowDenied, Verdict: "denied", Why: "policy", Target: target, Protocol: network})
			err = errForbidden{err}
		}
		return nil, err
	}
	if c.web {
		giveUpAfter(conn, webTimeout)
	}
	c.Conn, c.began, c.network = conn, time.Now(), network
	g.mu.Lock()
	g.conns[c] = true
	g.mu.Unlock()
	// Whoever was disabled before that was not cut.
	if c.user != "" {
		if _, ok := g.h.coord.ActiveUser(c.user); !ok {
			c.Close()
			return nil, errForbidden{errors.New("the user is disabled")}
		}
	}
	g.note(c, c.line(EventFlowBegan))
	return c, nil
}

// reach asks the policy first: what it refuses, and who is away, is known at once.
func (g *guests) reach(ctx context.Context, c *guestConn, network, target string) (net.Conn, error) {
	host, port, err := splitTarget(ctx, network, target)
	if err != nil {
		return nil, err
	}
	addr, err := g.find(ctx, c, host)
	if err != nil {
		return nil, err
	}
	c.to = netip.AddrPortFrom(addr, port)
	if c.rule, err = g.h.coord.Reach(c.name, network, c.to); err != nil {
		return nil, err
	}
	if c.user == "" {
		return g.h.node.DialContext(ctx, network, c.to.String())
	}
	return g.h.dialAs(ctx, c.user, network, c.to.String())
}

// find returns the address of a host: written as one, or called as the policy, the
// network or a LAN does. Of names, a user hears of those only that lead where the
// user may reach something.
func (g *guests) find(ctx context.Context, c *guestConn, host string) (netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil && a.Zone() == "" {
		return a.Unmap(), nil
	}
	if a, err := g.h.coord.HostAddr(c.name, host); err == nil {
		return a, nil
	}
	var addrs []netip.Addr
	var err error
	if c.user == "" {
		addrs, err = g.h.node.Resolve(ctx, host)
	} else {
		addrs, err = g.h.resolveAs(ctx, c.user, host)
	}
	if err != nil {
		return netip.Addr{}, err
	}
	return addrs[0], nil
}

// guestConn is a guest's connection to its target.
type guestConn struct {
	net.Conn
	g       *guests
	user    string    // an id; empty: this machine's own
	since   time.Time // when the user logged in to a page; zero: nobody did
	name    string    // of the user
	via     string    // ssh, expose ID
	client  netip.AddrPort
	web     bool // see publish.Guest
	within  bool // it is a part of something that is counted when it ends
	network string
	to      netip.AddrPort // what it was asked to lead to
	rule    string
	began   time.Time

	in, out atomic.Int64 // bytes to the target and back
	why     atomic.Pointer[string]
	once    sync.Once
}

// Read implements net.Conn.
func (c *guestConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.out.Add(int64(n))
	return n, err
}

// Write implements net.Conn.
func (c *guestConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.in.Add(int64(n))
	return n, err
}

// ReadFrom implements io.ReaderFrom: between two sockets the bytes stay in the
// kernel.
func (c *guestConn) ReadFrom(r io.Reader) (int64, error) {
	n, err := io.Copy(c.Conn, r)
	c.in.Add(n)
	return n, err
}

// WriteTo implements io.WriterTo, for the same reason.
func (c *guestConn) WriteTo(w io.Writer) (int64, error) {
	n, err := io.Copy(w, c.Conn)
	c.out.Add(n)
	return n, err
}

// CloseWrite ends one direction.
func (c *guestConn) CloseWrite() error {
	if h, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return nil
}

// SetLinger makes Close a reset.
func (c *guestConn) SetLinger(seconds int) error {
	if l, ok := c.Conn.(interface{ SetLinger(int) error }); ok {
		return l.SetLinger(seconds)
	}
	return nil
}

// reset ends the connection under whoever uses it, who closes it then.
func (c *guestConn) reset() {
	c.SetLinger(0)
	c.Conn.Close()
}

// Close implements net.Conn.
func (c *guestConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() {
		c.g.mu.Lock()
		delete(c.g.conns, c)
		c.g.mu.Unlock()
		c.g.note(c, c.line(EventFlowEnded))
	})
	return err
}

// Why a connection is ended here.
const (
	whyRevoked = "revoked"
	whyLogin   = "login" // it counts no more: it is too old, or has another password
	whyPolicy  = "policy"
)

// over says why a connection may go on no more; "": it may.
func (c *guestConn) over(by *coordinator) (why string) {
	if c.user != "" {
		if _, ok := by.ActiveUser(c.user); !ok {
			return whyRevoked
		}
	}
	if !c.since.IsZero() {
		if _, ok := by.LoginHolds(c.user, c.since); !ok || time.Since(c.since) >= publish.LoginFor {
			return whyLogin
		}
	}
	if m := c.g.h.node.look().m; m != nil && carriedHere(m, c.to.Addr()) {
		_, err := by.Reach(c.name, c.network, c.to)
		if p, ok := coord.AsProblem(err); ok && (p.Kind == coord.KindDenied || p.Kind == coord.KindNotFound) {
			return whyPolicy
		}
	}
	return ""
}

// line is what the record says of the connection.
func (c *guestConn) line(event string) FlowLine {
	l := FlowLine{
		Event: event, Source: c.LocalAddr().String(), Target: c.RemoteAddr().String(), Protocol: c.network,
		Verdict: "allowed", Rule: c.rule, BeganAt: c.began.UTC(), InBytes: uint64(c.in.Load()), OutBytes: uint64(c.out.Load()),
	}
	if event == EventFlowEnded {
		now := time.Now().UTC()
		l.EndedAt, l.Why = &now, "closed"
		if why := c.why.Load(); why != nil {
			l.Why = *why
		}
	}
	return l
}

// note records something of a guest.
func (g *guests) note(c *guestConn, l FlowLine) {
	l.At, l.User, l.Via, l.Client = time.Now().UTC(), c.name, c.via, c.client.String()
	if m := g.h.node.look().m; m != nil { // else the node has not joined yet
		l.Node = m.Self.Name
	}
	if l.BeganAt.IsZero() {
		l.BeganAt = l.At
	}
	g.h.node.flows.keep(l)
}

// refused records a login that failed. How many there can be, package limit says.
func (g *guests) refused(name, via string, client netip.AddrPort, why string) {
	g.note(&guestConn{name: name, via: via, client: client}, FlowLine{Event: EventLoginRefused, Verdict: "denied", Why: why})
}

// status is what the node's status says of guests.
func (g *guests) status() (sshHost *StatusSSH, ports []StatusExposure) {
	if g.sshLn != nil {
		sshHost = &StatusSSH{Listen: g.sshLn.Addr().String(), Fingerprint: g.key, Sessions: g.ssh.Sessions()}
	}
	ports = []StatusExposure{}
	for _, e := range g.h.coord.Exposures() {
		s := StatusExposure{
			ID: e.ID, Target: e.Target, Listen: coord.ListenText(e.Listen), Protocol: e.Protocol, Host: e.Host, TLS: e.TLS,
			Login: e.Login, User: e.User, By: e.By, Until: timeOrNil(e.Until),
		}
		s.State, s.Problem, s.Connections = g.ports.State(e.ID)
		ports = append(ports, s)
	}
	return sshHost, ports
}

func timeOrNil(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

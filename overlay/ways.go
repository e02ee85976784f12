package overlay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"overlayd/overlay/coord"
	"overlayd/overlay/forward"
	"overlayd/overlay/owner"
	"overlayd/overlay/proxy"
)

// WaysSchema names the JSON form of Ways.
const WaysSchema = "overlayd.ways/v1"

// waysFile keeps the proxy and the forwards over restarts.
const waysFile = "ways.json"

const (
	// DefaultProxy is where the proxy listens when nothing else is said.
	DefaultProxy = "127.0.0.1:1080"
	// mostForwards bounds the forwards of a node.
	mostForwards = 64
	// listenAgain is how soon a port that could not be opened at a start is tried
	// again.
	listenAgain = 5 * time.Second
)

// Ways are the ports by which programs of this machine get into the overlay
// without its routes.
type Ways struct {
	Schema   string        `json:"schema"`
	Proxy    *ProxyState   `json:"proxy"`         // null: it is off
	OwnUser  bool          `json:"own_user_only"` // ports of the loopback without a password are for the daemon's user
	Forwards []ForwardLine `json:"forwards"`
}

// ProxyState is how the proxy is.
type ProxyState struct {
	Listen   string    `json:"listen"`
	Password bool      `json:"password"` // clients need one
	User     string    `json:"user"`     // with this name; empty: none
	Outside  bool      `json:"outside"`  // what is not in the network is reached as this machine reaches it
	Error    *string   `json:"error"`    // why it does not listen; null: it does
	Counters []Counter `json:"counters"`
}

// ForwardLine is one forward.
type ForwardLine struct {
	Network  string  `json:"network"`
	Listen   string  `json:"listen"`
	Target   string  `json:"target"`
	Open     int     `json:"open"` // connections, or clients of UDP
	Accepted uint64  `json:"accepted"`
	Failures uint64  `json:"failures"`
	Error    *string `json:"error"` // why it does not listen, or the last connection was not made; null: all is well
}

// savedWays is the file.
type savedWays struct {
	Schema   int            `json:"schema"`
	Proxy    *savedProxy    `json:"proxy"`
	Forwards []forward.Rule `json:"forwards"`
}

type savedProxy struct {
	Listen netip.AddrPort `json:"listen"`
	Login  *proxy.Saved   `json:"login"`
}

// ownUserOnly reports whether ports of the loopback that have no password are for
// the programs of the daemon's own user, and root. One that runs as root is there
// for everybody on the machine, as its routes are.
func (n *Node) ownUserOnly() bool { return owner.Known && n.uid > 0 }

// admits says who may use a port of this machine; nil: whoever reaches it.
func (n *Node) admits(listen netip.AddrPort, password bool) func(string, netip.AddrPort, netip.AddrPort) bool {
	if password || !listen.Addr().IsLoopback() || !n.ownUserOnly() {
		return nil
	}
	return func(network string, client, server netip.AddrPort) bool {
		uid, err := owner.Of(network, client, server)
		if err != nil {
			n.log.Debug("a program of an unknown user is not let in", "addr", server, "err", err)
			return false
		}
		return uid == n.uid || uid == 0
	}
}

// outside reports whether the proxy also connects to what is outside of the
// network: for programs of this machine alone.
func (s savedProxy) outside() bool { return s.Listen.Addr().IsLoopback() }

// ways are the proxy and the forwards of a node.
type ways struct {
	n  *Node
	at atomic.Pointer[netip.AddrPort] // where the proxy is, or was last; nil: nowhere

	mu       sync.Mutex // guards what follows
	saved    savedWays  // what load read, for run
	ctx      context.Context
	running  sync.WaitGroup
	proxy    *runningProxy // nil: it is off
	forwards []*runningForward
}

// way is something that listens, or tries to.
type way struct {
	stop context.CancelFunc
	done chan struct{} // closed when it listens no more

	mu     sync.Mutex // guards failed, and the server of a proxy
	failed error      // why it does not listen
}

func (w *way) setFailed(err error) {
	w.mu.Lock()
	w.failed = err
	w.mu.Unlock()
}

func (w *way) why() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.failed
}

func (w *way) end() {
	w.stop()
	<-w.done
}

type runningProxy struct {
	way
	saved  savedProxy
	server *proxy.Server
}

type runningForward struct {
	way
	rule forward.Rule

	at   sync.Mutex       // guards live
	live *forward.Forward // nil: it does not listen
}

// load reads what was saved.
func (w *ways) load() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	var saved savedWays
	if _, err := w.n.dir.readJSON(waysFile, &saved); err != nil {
		return err
	}
	w.saved = saved
	if saved.Proxy != nil {
		w.at.Store(&saved.Proxy.Listen)
	}
	return nil
}

// isOwn reports whether a proxy that the environment names is our own: a shell
// that uses it may start us.
func (w *ways) isOwn(host string) bool {
	own := w.at.Load()
	at, err := netip.ParseAddrPort(host)
	return err == nil && own != nil && at.Port() == own.Port() && (at.Addr() == own.Addr() || at.Addr().IsLoopback() && own.Addr().IsUnspecified())
}

// run opens what was saved, and keeps everything until ctx ends.
func (w *ways) run(ctx context.Context) error {
	w.mu.Lock()
	w.ctx = ctx
	saved := w.saved
	if saved.Proxy != nil {
		if err := w.startProxy(*saved.Proxy, nil); err != nil {
			w.n.log.Error("the proxy is off", "err", err)
		}
	}
	for _, r := range saved.Forwards[:min(len(saved.Forwards), mostForwards)] {
		w.startForward(r, nil)
	}
	w.mu.Unlock()
	<-ctx.Done()
	w.mu.Lock()
	w.ctx = nil // nothing is begun any more
	w.mu.Unlock()
	w.running.Wait()
	return nil
}

// save writes down what there is; mu is held.
func (w *ways) save() error {
	saved := savedWays{Schema: stateSchema}
	if w.proxy != nil {
		saved.Proxy = &w.proxy.saved
	}
	for _, f := range w.forwards {
		saved.Forwards = append(saved.Forwards, f.rule)
	}
	return w.n.dir.writeJSON(waysFile, saved)
}

// setProxy turns the proxy on, or moves it.
func (w *ways) setProxy(at netip.AddrPort, password string) error {
	saved := savedProxy{Listen: at}
	if password != "" {
		login, err := proxy.NewLogin(proxy.DefaultUser, password)
		if err != nil {
			return fault(ExitUsage, "give another, or let one be made up", "%v", err)
		}
		kept := login.Save()
		saved.Login = &kept
	}
	if !at.Addr().IsLoopback() && saved.Login == nil {
		return fault(ExitUsage, "give it a password, or listen on 127.0.0.1", "a proxy that other machines can reach needs a password")
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ctx == nil {
		return errStarting
	}
	old := w.proxy
	if old != nil && old.saved.Listen == at {
		old.end() // the port is wanted again
		w.proxy = nil
	}
	ln, err := net.Listen("tcp", at.String())
	if err != nil {
		if old != nil && w.proxy == nil {
			return errors.Join(w.portFault("tcp", at, err), w.startProxy(old.saved, nil))
		}
		return w.portFault("tcp", at, err)
	}
	if old != nil {
		old.end()
	}
	if err := w.startProxy(saved, ln); err != nil {
		return err
	}
	w.n.log.Info("the proxy is on", "addr", at, "password", saved.Login != nil)
	return w.save()
}

// proxyOff turns it off.
func (w *ways) proxyOff() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.proxy == nil {
		return nil
	}
	w.proxy.end()
	w.proxy = nil
	w.n.log.Info("the proxy is off")
	return w.save()
}

// startProxy starts it on ln, or on a port that is still to be opened; mu is
// held.
func (w *ways) startProxy(saved savedProxy, ln net.Listener) error {
	var login *proxy.Login
	if saved.Login != nil {
		var err error
		if login, err = saved.Login.Load(); err != nil {
			return err
		}
	}
	p := &runningProxy{saved: saved}
	dial := w.n.DialContext
	if saved.outside() {
		dial = w.n.dialLocal
	}
	fresh := func() *proxy.Server {
		s := proxy.New(proxy.Options{
			Dial: dial, Explain: explainToProxy, Reach: w.n.proxyReach, Login: login, Admit: w.n.admits(saved.Listen, login != nil), Log: w.n.log,
		})
		p.mu.Lock()
		p.server = s
		p.mu.Unlock()
		return s
	}
	server := fresh()
	w.proxy = p
	w.at.Store(&p.saved.Listen)
	w.start(&p.way, func(ctx context.Context) error {
		if ln == nil {
			var err error
			if ln, err = net.Listen("tcp", saved.Listen.String()); err != nil {
				return portFault("tcp", saved.Listen.String(), err)
			}
		}
		p.setFailed(nil)
		err := server.Serve(ctx, ln)
		ln, server = nil, fresh() // each serves once
		return err
	})
	return nil
}

// start runs serve until the way is ended, again and again while it fails; mu is
// held.
func (w *ways) start(one *way, serve func(context.Context) error) {
	ctx, stop := context.WithCancel(w.ctx)
	one.stop, one.done = stop, make(chan struct{})
	w.running.Go(func() {
		defer close(one.done)
		for { // once at least, so that a port that is open is closed
			err := serve(ctx)
			if ctx.Err() != nil {
				return
			}
			if one.why() == nil {
				w.n.log.Warn("a port is not open; trying again", "err", err)
			}
			one.setFailed(err)
			select {
			case <-ctx.Done():
				return
			case <-time.After(listenAgain):
			}
		}
	})
}

// addForward opens a port.
func (w *ways) addForward(r forward.Rule) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ctx == nil {
		return errStarting
	}
	for _, f := range w.forwards {
		if f.rule == r {
			return nil
		}
		if f.rule.Key() == r.Key() {
			return fault(ExitConflict, fmt.Sprintf("remove it first: overlayd forward remove %s", r.Listen),
				"%s port %s is already forwarded to %s", r.Network, r.Listen, f.rule.Target)
		}
	}
	if len(w.forwards) >= mostForwards {
		return fault(ExitConflict, "remove some of them", "there are %d forwards already", mostForwards)
	}
	live, err := w.n.listenForward(r)
	if err != nil {
		return w.portFault(r.Network, r.Listen, err)
	}
	w.startForward(r, live)
	w.n.log.Info("forwarding", "network", r.Network, "addr", r.Listen, "target", r.Target)
	return w.save()
}

func (n *Node) listenForward(r forward.Rule) (*forward.Forward, error) {
	return forward.Listen(r, forward.Options{Dial: n.DialContext, Admit: n.admits(r.Listen, false), Log: n.log})
}

// portFault explains why a port cannot be had, and knows those of the other ways; mu is
// held.
func (w *ways) portFault(network string, at netip.AddrPort, err error) error {
	if !isAddrInUse(err) {
		return portFault(network, at.String(), err)
	}
	if p := w.proxy; p != nil && p.why() == nil && network == "tcp" && p.saved.Listen.Port() == at.Port() {
		return fault(ExitConflict, "choose another port, or turn it off: overlayd proxy off", "overlayd's own proxy listens on %s", p.saved.Listen)
	}
	for _, f := range w.forwards {
		if f.why() == nil && f.rule.Network == network && f.rule.Listen.Port() == at.Port() {
			return fault(ExitConflict, fmt.Sprintf("choose another port, or: overlayd forward remove %s", f.rule.Listen),
				"%s port %s is forwarded to %s", network, f.rule.Listen, f.rule.Target)
		}
	}
	return portFault(network, at.String(), err)
}

// startForward serves a forward that is open, or still to be opened; mu is held.
func (w *ways) startForward(r forward.Rule, live *forward.Forward) {
	f := &runningForward{rule: r, live: live}
	w.forwards = append(w.forwards, f)
	w.start(&f.way, func(ctx context.Context) error {
		one := f.forward()
		if one == nil {
			var err error
			if one, err = w.n.listenForward(r); err != nil {
				return portFault(r.Network, r.Listen.String(), err)
			}
			f.setForward(one)
		}
		f.setFailed(nil)
		defer f.setForward(nil)
		return one.Serve(ctx)
	})
}

func (f *runningForward) forward() *forward.Forward {
	f.at.Lock()
	defer f.at.Unlock()
	return f.live
}

func (f *runningForward) setForward(live *forward.Forward) {
	f.at.Lock()
	f.live = live
	f.at.Unlock()
}

// removeForward closes a port, or that of each network when none is named.
func (w *ways) removeForward(network string, at netip.AddrPort) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	matches := func(f *runningForward) bool {
		return f.rule.Listen == at && (network == "" || f.rule.Network == network)
	}
	if !slices.ContainsFunc(w.forwards, matches) {
		return fault(ExitFailure, "see overlayd forward list", "nothing is forwarded from %s", strings.TrimSpace(network+" "+at.String()))
	}
	for _, f := range w.forwards {
		if matches(f) {
			f.end()
		}
	}
	w.forwards = slices.DeleteFunc(w.forwards, matches)
	return w.save()
}

// state says how everything is.
func (w *ways) state() Ways {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := Ways{Schema: WaysSchema, OwnUser: w.n.ownUserOnly(), Forwards: []ForwardLine{}}
	if p := w.proxy; p != nil {
		s.Proxy = &ProxyState{Listen: p.saved.Listen.String(), Outside: p.saved.outside(), Error: textOf(p.why()), Counters: []Counter{}}
		if p.saved.Login != nil {
			s.Proxy.Password, s.Proxy.User = true, p.saved.Login.Name
		}
		p.mu.Lock()
		server := p.server
		p.mu.Unlock()
		for _, c := range server.Counters() {
			s.Proxy.Counters = append(s.Proxy.Counters, Counter(c))
		}
	}
	for _, f := range w.forwards {
		l := ForwardLine{Network: f.rule.Network, Listen: f.rule.Listen.String(), Target: f.rule.Target, Error: textOf(f.why())}
		if live := f.forward(); live != nil {
			st := live.Status()
			l.Open, l.Accepted, l.Failures = st.Open, st.Accepted, st.Failures
			if st.Failed != nil {
				l.Error = textOf(st.Failed)
			}
		}
		s.Forwards = append(s.Forwards, l)
	}
	return s
}

func textOf(err error) *string {
	if err == nil {
		return nil
	}
	s := err.Error()
	return &s
}

// explainToProxy puts an error of DialContext into the proxy's words.
func explainToProxy(err error) (proxy.Reason, string) {
	f := AsFault(err)
	text := f.Message
	if f.Hint != "" {
		text += "\nhint: " + f.Hint
	}
	d, ok := errors.AsType[*DialError](err)
	if !ok {
		return proxy.Failed, text
	}
	switch d.Reason {
	case ReasonPolicy, ReasonOutside, ReasonBarred:
		return proxy.Forbidden, text
	case ReasonNoName:
		return proxy.NoName, text
	case ReasonRefused:
		return proxy.Refused, text
	case ReasonUnreachable:
		return proxy.Unreachable, text
	case ReasonTimeout, ReasonOffline:
		return proxy.TimedOut, text
	}
	return proxy.Failed, text
}

// Reach is what lies in the overlay and behind its gateways.
type Reach struct {
	Prefixes []netip.Prefix `json:"prefixes"`
	Names    []string       `json:"names"`   // of machines
	Domains  []string       `json:"domains"` // of the LANs, as far as the gateways tell
}

// reach is what can be reached from here.
func (n *Node) reach(ctx context.Context) Reach {
	v := n.look()
	if v.m == nil || v.plan == nil || v.live == nil {
		return Reach{}
	}
	r := Reach{Prefixes: []netip.Prefix{v.m.Overlay}, Domains: n.lanDomains(ctx, v)}
	r.Prefixes = append(r.Prefixes, v.plan.Routing.Routes...)
	for _, p := range append([]coord.Node{v.m.Self}, v.m.Peers...) {
		r.Names = append(r.Names, p.Name)
	}
	return r
}

// proxyReach is what the PAC file sends to the proxy.
func (n *Node) proxyReach(ctx context.Context) proxy.Reach { return proxy.Reach(n.reach(ctx)) }

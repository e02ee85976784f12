package netstack

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/tun"
	"gvisor.dev/gvisor/pkg/log"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/raw"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"overlayd/overlay/train"
)

// Options are the sizes of a Stack. The zero value works.
type Options struct {
	Log *slog.Logger // nil: none
	// TCPFlows and UDPFlows are how many flows from the overlay there may be to
	// the host's side; default 8192 and 4096. One source may have half of them.
	TCPFlows, UDPFlows int
	// Memory is how many bytes all TCP connections may hold; default 512 MiB. One
	// source may have half of it.
	Memory int64
}

const (
	defaultTCPFlows = 8192
	defaultUDPFlows = 4096

	// nic is the number of the only network card.
	nic = tcpip.NICID(1)

	// windowFirst is how much a connection may hold unread before anybody has
	// read from it. It grows as it is read, up to windowMost.
	windowFirst = 128 << 10
	windowMost  = 4 << 20
	// lastWords is how long a closed connection's number pair is kept, for
	// packets that are still on their way. Linux takes 60 s, and lets a new
	// connection begin meanwhile; this stack does not, and refuses one now and
	// then that comes just as the time is over.
	lastWords = 10 * time.Millisecond
)

// State is what a Stack should be.
type State struct {
	Addrs   []netip.Addr   // its own
	MTU     int            // of the tunnel
	Overlay netip.Prefix   // the nodes' own addresses: never reached by the host
	Serves  []netip.Prefix // networks that are reached from the host for others
	// Host is the address by which this machine reaches its own services, for
	// flows to Addrs that nobody listens to here; the zero value: there are none.
	Host netip.Addr
}

// Stack is TCP/IP in this process, behind a WireGuard device.
type Stack struct {
	log    *slog.Logger // set by New, then read-only
	stack  *stack.Stack
	link   *link
	events chan tun.Event
	flows  *table
	budget *budget
	denied refusals
	dials  dials
	dialer func(context.Context, netip.AddrPort) (*net.TCPConn, error) // dialHost, but in tests
	ctx    context.Context                                             // ends with Close
	cancel context.CancelFunc
	count  counters

	nextPort atomic.Uint32 // for who dials; any number

	frame   []byte // of the one goroutine that reads, as the splitter
	split   train.Splitter
	joiners sync.Pool
	state   atomic.Pointer[State]

	mu      sync.Mutex // guards the rest
	closed  bool
	running sync.WaitGroup // Add only under mu, and not once closed
	done    chan struct{}  // closed when Close is over
}

// quiet keeps the stack's own words, about single packets, out of our log.
var quiet = sync.OnceFunc(func() { log.SetTarget(log.GoogleEmitter{Writer: &log.Writer{Next: io.Discard}}) })

// New returns a stack without an address.
func New(o Options, mtu int) (*Stack, error) {
	quiet()
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.TCPFlows <= 0 {
		o.TCPFlows = defaultTCPFlows
	}
	if o.UDPFlows <= 0 {
		o.UDPFlows = defaultUDPFlows
	}
	if o.Memory <= 0 {
		o.Memory = defaultMemory
	}
	s := &Stack{
		log:  o.Log,
		link: newLink(mtu),
		stack: stack.New(stack.Options{
			NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol},
			TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
			RawFactory:         raw.EndpointFactory{},
		}),
		events: make(chan tun.Event),
		dialer: dialHost,
		flows:  newTable(o),
		budget: newBudget(o.Memory),
		denied: refusals{of: map[refused]*datagrams{}},
		frame:  make([]byte, train.HeaderSize+train.MostBytes),
		done:   make(chan struct{}),
	}
	s.joiners.New = func() any { return new(train.Joiner) }
	s.state.Store(&State{MTU: mtu})
	s.nextPort.Store(rand.Uint32()) // not the one of the last start
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if err := s.tune(); err != nil {
		s.Close()
		return nil, err
	}
	s.forward()
	s.goRun(s.sweep)
	return s, nil
}

// tune sets what is the same for every connection, and makes the card.
func (s *Stack) tune() error {
	var failed error
	check := func(what string, err tcpip.Error) {
		if err != nil && failed == nil {
			failed = fmt.Errorf("set up the network stack: %s: %w", what, errnoOf(err))
		}
	}
	sack := tcpip.TCPSACKEnabled(true)
	check("SACK", s.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &sack))
	// Loss detection by time takes what was merely reordered or acknowledged
	// late for lost, in the versions that we know.
	recovery := tcpip.TCPRecovery(0)
	check("recovery", s.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &recovery))
	moderate := tcpip.TCPModerateReceiveBufferOption(true)
	check("receive buffer", s.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &moderate))
	receive := tcpip.TCPReceiveBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: windowFirst, Max: windowMost}
	check("receive buffer", s.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &receive))
	send := tcpip.TCPSendBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: windowFirst, Max: windowMost}
	check("send buffer", s.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &send))
	wait := tcpip.TCPTimeWaitTimeoutOption(lastWords)
	check("time wait", s.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &wait))
	check("card", s.stack.CreateNIC(nic, s.link))
	everything, err := tcpip.NewSubnet(tcpip.AddrFrom4([4]byte{}), tcpip.MaskFromBytes(make([]byte, 4)))
	if err != nil {
		return fmt.Errorf("set up the network stack: %w", err)
	}
	s.stack.SetRouteTable([]tcpip.Route{{Destination: everything, NIC: nic}})
	return failed
}

// Apply makes the stack that of a state. Connections to addresses that stay go
// on.
func (s *Stack) Apply(want State) error {
	have := s.state.Swap(&want)
	s.link.SetMTU(uint32(want.MTU))
	// With networks of others behind us every destination is ours to take, and
	// to answer for.
	gateway := len(want.Serves) > 0
	if err := s.stack.SetPromiscuousMode(nic, gateway); err != nil {
		return fmt.Errorf("take packets for others: %w", errnoOf(err))
	}
	if err := s.stack.SetSpoofing(nic, gateway); err != nil {
		return fmt.Errorf("answer for others: %w", errnoOf(err))
	}
	for _, a := range have.Addrs {
		if !slices.Contains(want.Addrs, a) {
			s.stack.RemoveAddress(nic, tcpip.AddrFromSlice(a.AsSlice()))
		}
	}
	for _, a := range want.Addrs {
		if slices.Contains(have.Addrs, a) || !a.Is4() {
			continue
		}
		own := tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: tcpip.AddrFrom4(a.As4()).WithPrefix()}
		if err := s.stack.AddProtocolAddress(nic, own, stack.AddressProperties{}); err != nil {
			return fmt.Errorf("add address %s: %w", a, errnoOf(err))
		}
	}
	s.flows.end(func(k flowKey) bool { _, ok := want.target(k.dst.Addr()); return !ok })
	return nil
}

// target says at which address the host reaches the destination of a flow from
// the overlay.
func (s *State) target(dst netip.Addr) (netip.Addr, bool) {
	if slices.Contains(s.Addrs, dst) {
		return s.Host, s.Host.IsValid()
	}
	if !dst.IsGlobalUnicast() && !dst.IsLinkLocalUnicast() || s.Overlay.Contains(dst) || dst.As4()[0] == 0 {
		return dst, false
	}
	return dst, slices.ContainsFunc(s.Serves, func(p netip.Prefix) bool { return p.Contains(dst) })
}

// own returns the stack's address; the zero one while it has none.
func (s *Stack) own() netip.Addr {
	if st := s.state.Load(); len(st.Addrs) > 0 {
		return st.Addrs[0]
	}
	return netip.Addr{}
}

// enter counts a goroutine that ends with ctx, unless the stack is closed. Whoever
// was let in calls running.Done.
func (s *Stack) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.running.Add(1)
	return true
}

// goRun starts f, unless the stack is closed.
func (s *Stack) goRun(f func()) bool {
	if !s.enter() {
		return false
	}
	go func() {
		defer s.running.Done()
		f()
	}()
	return true
}

// Close ends every connection, and returns when all is over.
func (s *Stack) Close() error {
	s.mu.Lock()
	closed := s.closed
	s.closed = true
	s.mu.Unlock()
	if closed {
		<-s.done
		return nil
	}
	defer close(s.done)
	s.cancel()
	s.flows.end(func(flowKey) bool { return true })
	s.await()
	s.link.shut()
	s.stack.Destroy()
	close(s.events)
	return nil
}

// abortAgain is how soon a handshake that began as the stack was closed is ended.
const abortAgain = 50 * time.Millisecond

// await returns when everything that runs is over. A handshake would not hear of
// the end before the other side has been asked for two minutes.
func (s *Stack) await() {
	over := make(chan struct{})
	go func() {
		s.running.Wait()
		close(over)
	}()
	tick := time.NewTicker(abortAgain)
	defer tick.Stop()
	for {
		for _, ep := range s.stack.RegisteredEndpoints() {
			ep.Abort()
		}
		select {
		case <-over:
			return
		case <-tick.C:
		}
	}
}

package overlay

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.zx2c4.com/wireguard/tun"

	"overlayd/journal"
	"overlayd/overlay/netstack"
	"overlayd/overlay/tunnel"
	"overlayd/routing"
)

// host is the part of this machine that a node changes: its kernel, or nothing,
// for a node in user space. That one needs no privilege.
type host struct {
	kernel *routing.Kernel  // nil: in user space
	notes  *journal.Journal // likewise
}

// openHost makes ready what the node needs of its machine.
func (n *Node) openHost() (h host, err error) {
	if n.o.Userspace {
		return host{}, nil
	}
	if h.notes, err = journal.Open(n.dir.path); err != nil {
		return host{}, err
	}
	h.kernel, err = routing.NewKernel(routing.Options{Journal: h.notes, Log: n.log})
	return h, err
}

// place says in the log where the node meets the machine.
func (n *Node) place() slog.Attr {
	if n.o.Userspace {
		return slog.Bool("userspace", true)
	}
	return slog.String("interface", n.o.Interface)
}

// mark is what keeps our own packets out of the tunnel. Where no route leads into
// it none is needed, nor allowed.
func (h host) mark() uint32 {
	if h.kernel == nil {
		return 0
	}
	return routing.Mark
}

// control is a Control for sockets to the outside.
func (h host) control() func(network, address string, c syscall.RawConn) error {
	if h.kernel == nil {
		return nil
	}
	return markSocket
}

// open makes the interface, or the stack in its place.
func (m *machine) open(state routing.State) (tun.Device, error) {
	if m.host.kernel != nil {
		m.sockets = kernelSockets{state.Link}
		return tunnel.OpenTUN(state.Link, state.MTU)
	}
	stack, err := netstack.New(netstack.Options{Log: m.log}, state.MTU)
	if err != nil {
		return nil, err
	}
	m.stack, m.sockets = stack, stack
	return stack, nil
}

// planStack says what the stack of a node in user space should be.
func (p *Plan) planStack(in planInput) {
	if !in.Userspace {
		return
	}
	s := &netstack.State{Addrs: in.Map.Self.Addrs, MTU: p.Routing.MTU, Overlay: in.Map.Overlay}
	if p.Routing.Forward {
		for _, r := range in.Map.Self.Routes {
			if r.Approved {
				s.Serves = append(s.Serves, r.Prefix)
			}
		}
	}
	if in.HostPorts {
		for _, a := range p.Local.Addrs {
			if a.Is4() {
				s.Host = a
				break
			}
		}
	}
	p.Stack = s
}

// stackState is the part of the plan that package netstack makes true.
func (p *Plan) stackState() netstack.State { return *p.Stack }

// stackText prints what is planned for a stack.
func stackText(s *netstack.State, routes, closed []netip.Prefix) string {
	var b strings.Builder
	fmt.Fprintf(&b, "userspace mtu %d\n", s.MTU)
	for _, a := range s.Addrs {
		fmt.Fprintf(&b, "userspace address %s\n", a)
	}
	for _, p := range append([]netip.Prefix{s.Overlay}, routes...) {
		verb := "reach"
		if slices.Contains(closed, p) {
			verb = "refuse"
		}
		fmt.Fprintf(&b, "userspace %s %s\n", verb, p)
	}
	for _, p := range s.Serves {
		fmt.Fprintf(&b, "userspace serve %s\n", p)
	}
	if s.Host.IsValid() && len(s.Addrs) > 0 {
		fmt.Fprintf(&b, "userspace serve %s at %s\n", s.Addrs[0], s.Host)
	}
	return b.String()
}

// stackPrefix begins the names of what the stack counts.
const stackPrefix = "netstack_"

// stackHealth lists what is wrong with the stack.
func stackHealth(full bool) []HealthItem {
	if !full {
		return nil
	}
	return []HealthItem{{
		ID: "flows_full", Severity: SeverityWarning,
		Title: "connections were not accepted within the last minute: there is no room for more flows, or their source has half of it",
		Fix:   "`overlayd audit` shows whose they are; a gateway with root has room for more",
	}}
}

// stackFull reports whether the stack lately had no room.
func (v view) stackFull(now time.Time) bool {
	return v.live != nil && v.live.stack != nil && v.live.stack.Full(now)
}

// outside is what a flow's source looks like behind a gateway in user space.
func (n *Node) outside(proto uint8, src, dst netip.AddrPort) netip.AddrPort {
	if v := n.look(); v.live != nil && v.live.stack != nil {
		return v.live.stack.Outside(proto, src, dst)
	}
	return netip.AddrPort{}
}

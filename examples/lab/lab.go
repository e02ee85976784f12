//go:build linux

package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
)

// The addresses of the lab. The overlay's are given out by the invites of
// [Lab.Join], the others are on the machines from the start.
const (
	Overlay        = "172.18.0.0/24"
	VPSOverlay     = "172.18.0.10"
	LaptopOverlay  = "172.18.0.11"
	VPS2Overlay    = "172.18.0.20"
	GatewayOverlay = "172.18.0.200"

	LAN         = "192.168.1.0/24"
	LabNATAddr  = "192.168.1.1" // the LAN's default gateway
	GatewayAddr = "192.168.1.200"
	HostAddr    = "192.168.1.201"

	VPSAddr    = "203.0.113.10"
	VPS2Addr   = "198.18.0.10"  // the second VPS
	HomePublic = "198.51.100.2" // the home NAT, seen from outside
	LabPublic  = "192.0.2.2"    // the lab NAT, seen from outside
)

// Options says what kind of world to build. The zero value is a friendly one.
type Options struct {
	Home NAT // between laptop and internet; zero: Cone
	Lab  NAT // between LAN and internet; zero: Cone

	// NoOffload switches TSO, GSO, GRO and UDP segmentation off on every wire,
	// as on network cards that give no help: no super-packet crosses.
	NoOffload bool

	// MiddleMTU is the MTU of the wires between internet and both NATs; zero: 1500.
	MiddleMTU int

	// FilterICMP drops ICMP "fragmentation needed" in the middle, so that path
	// MTU discovery finds nothing out.
	FilterICMP bool

	// Clash puts the laptop's own network on 192.168.1.0/24 too: the laptop is
	// .50, the home NAT .1, and the home NAT also answers for .201.
	Clash bool

	// Docker gives the gateway a FORWARD policy of DROP and the chains that
	// Docker makes.
	Docker bool

	// SecondVPS adds another public machine, for a second relay.
	SecondVPS bool

	// Overlayd is the binary that Machine.Overlayd and Join run; empty: the
	// first "overlayd" on the PATH.
	Overlayd string
}

// Lab is a set of machines. Its methods are safe for concurrent use.
type Lab struct {
	Laptop, HomeNAT, Internet, VPS, LabNAT, Gateway, Host *Machine

	VPS2 *Machine // nil without Options.SecondVPS

	Options Options
	Dir     string // temporary files: logs, captures, state directories

	prefix string // of namespace names

	mu        sync.Mutex // guards processes and closed
	processes []*Process
	closed    bool
}

// serial tells the labs of one process apart.
var serial atomic.Int32

// New removes what dead labs left, then builds a lab. What was made is taken
// away again when something fails.
func New(ctx context.Context, o Options) (*Lab, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("make a lab: network namespaces need root\nhint: run it with sudo")
	}
	if err := RemoveLeftovers(ctx); err != nil {
		return nil, err
	}
	if o.Overlayd != "" {
		abs, err := filepath.Abs(o.Overlayd)
		if err != nil {
			return nil, fmt.Errorf("find %s: %w", o.Overlayd, err)
		}
		o.Overlayd = abs
	}
	l := &Lab{Options: o, prefix: fmt.Sprintf("%s%d-", namespacePrefix, os.Getpid())}
	if n := serial.Add(1); n > 1 {
		l.prefix += fmt.Sprintf("%d-", n)
	}
	dir, err := os.MkdirTemp("", l.prefix)
	if err != nil {
		return nil, fmt.Errorf("make the lab's directory: %w", err)
	}
	l.Dir = dir
	if err := l.build(ctx); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func (l *Lab) build(ctx context.Context) error {
	type build struct {
		machine **Machine
		name    string
		router  bool
	}
	machines := []build{
		{&l.Laptop, "laptop", false},
		{&l.HomeNAT, "homenat", true},
		{&l.Internet, "internet", true},
		{&l.VPS, "vps", false},
		{&l.LabNAT, "labnat", true},
		{&l.Gateway, "gateway", false},
		{&l.Host, "lanhost", false},
	}
	if l.Options.SecondVPS {
		machines = append(machines, build{&l.VPS2, "vps2", false})
	}
	for _, m := range machines {
		made, err := l.machine(ctx, m.name, m.router)
		if err != nil {
			return err
		}
		*m.machine = made
	}
	if err := l.wire(ctx); err != nil {
		return err
	}
	return l.filters(ctx)
}

// wire connects the machines: cables, a bridge for the LAN, addresses, routes.
func (l *Lab) wire(ctx context.Context) error {
	mtu := l.Options.MiddleMTU
	if mtu == 0 {
		mtu = 1500
	}
	home, laptop := "10.0.77.1/24", "10.0.77.2/24"
	if l.Options.Clash {
		home, laptop = "192.168.1.1/24", "192.168.1.50/24"
	}
	cables := []cable{
		{a: l.Laptop, aLink: "eth0", aAddr: laptop, b: l.HomeNAT, bLink: "eth1", bAddr: home},
		{a: l.HomeNAT, aLink: "eth0", aAddr: HomePublic + "/24", b: l.Internet, bLink: "home", bAddr: "198.51.100.1/24", mtu: mtu},
		{a: l.VPS, aLink: "eth0", aAddr: VPSAddr + "/24", b: l.Internet, bLink: "vps", bAddr: "203.0.113.1/24"},
		{a: l.LabNAT, aLink: "eth0", aAddr: LabPublic + "/24", b: l.Internet, bLink: "lab", bAddr: "192.0.2.1/24", mtu: mtu},
		{a: l.Gateway, aLink: "eth0", aAddr: GatewayAddr + "/24", b: l.LabNAT, bLink: "port1"},
		{a: l.Host, aLink: "eth0", aAddr: HostAddr + "/24", b: l.LabNAT, bLink: "port2"},
	}
	if l.VPS2 != nil {
		cables = append(cables, cable{a: l.VPS2, aLink: "eth0", aAddr: VPS2Addr + "/24", b: l.Internet, bLink: "vps2", bAddr: "198.18.0.1/24"})
	}
	for _, c := range cables {
		if err := l.connect(ctx, c); err != nil {
			return err
		}
	}
	lan := [][]string{
		{"link", "add", "br0", "type", "bridge"},
		{"link", "set", "port1", "master", "br0"},
		{"link", "set", "port2", "master", "br0"},
		{"addr", "add", LabNATAddr + "/24", "dev", "br0"},
		{"link", "set", "br0", "up"},
	}
	for _, args := range lan {
		if err := l.LabNAT.ip(ctx, args...); err != nil {
			return err
		}
	}
	if l.Options.Clash {
		if err := l.HomeNAT.ip(ctx, "addr", "add", HostAddr+"/24", "dev", "eth1"); err != nil {
			return err
		}
	}
	homeAddr, _, _ := cutPrefix(home)
	type route struct {
		m   *Machine
		via string
	}
	routes := []route{
		{l.Laptop, homeAddr}, {l.HomeNAT, "198.51.100.1"}, {l.VPS, "203.0.113.1"},
		{l.LabNAT, "192.0.2.1"}, {l.Gateway, LabNATAddr}, {l.Host, LabNATAddr},
	}
	if l.VPS2 != nil {
		routes = append(routes, route{l.VPS2, "198.18.0.1"})
	}
	for _, r := range routes {
		if err := r.m.ip(ctx, "route", "add", "default", "via", r.via); err != nil {
			return err
		}
	}
	return nil
}

// Machines returns all of them, those that a failed New did not reach left out.
func (l *Lab) Machines() []*Machine {
	all := []*Machine{l.Laptop, l.HomeNAT, l.Internet, l.VPS, l.LabNAT, l.Gateway, l.Host, l.VPS2}
	return slices.DeleteFunc(all, func(m *Machine) bool { return m == nil })
}

// Close ends every process in the lab and removes the machines and the files.
// A second Close does nothing.
func (l *Lab) Close() error {
	l.mu.Lock()
	closed := l.closed
	l.closed = true
	processes := slices.Clone(l.processes)
	l.mu.Unlock()
	if closed {
		return nil
	}
	for _, p := range processes { // all at once: they end in parallel
		p.Signal(terminate)
	}
	for _, p := range processes {
		p.Stop()
	}
	var errs []error
	for _, m := range l.Machines() {
		errs = append(errs, removeNamespace(context.Background(), m.Namespace))
	}
	return errors.Join(append(errs, os.RemoveAll(l.Dir))...)
}

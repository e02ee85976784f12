package overlay

import (
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"

	"overlayd/overlay/coord"
)

// The defaults of the command line, also for Options fields left empty.
const (
	DefaultStateDir  = "/var/lib/overlayd"
	DefaultSocket    = "/run/overlayd/overlayd.sock"
	DefaultInterface = "ovl0"
)

// UserPlaces returns where a user who is not root keeps a node: in the directories
// of the XDG Base Directory Specification, as the environment names them. The
// socket is in the state directory where there is no runtime directory.
func UserPlaces(getenv func(string) string) (stateDir, socket string, err error) {
	base := getenv("XDG_STATE_HOME")
	if !filepath.IsAbs(base) { // relative ones are to be ignored
		home := getenv("HOME")
		if !filepath.IsAbs(home) {
			return "", "", fault(ExitUsage, "set HOME, or give --state-dir and --socket", "there is no home directory to keep the state in")
		}
		base = filepath.Join(home, ".local", "state")
	}
	stateDir = filepath.Join(base, "overlayd")
	socket = filepath.Join(stateDir, "overlayd.sock")
	if run := getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(run) {
		socket = filepath.Join(run, "overlayd", "overlayd.sock")
	}
	return stateDir, socket, nil
}

// Options says how a Node runs. The zero value, with a Link for the first
// start, is a member with the default places.
type Options struct {
	StateDir  string           // "": DefaultStateDir
	Socket    string           // "": DefaultSocket
	Interface string           // "": DefaultInterface
	Link      string           // invite; needed to join, and later to renew the key or to return after a removal
	Name      string           // wished name; "": the invite's, else the host's
	Role      coord.Role       // "": RoleMember
	Advertise []netip.Prefix   // a gateway's prefixes; nil: what the invite approved
	Port      uint16           // local UDP port; 0: any
	Endpoints []netip.AddrPort // where peers may reach that port from outside, besides what is found out
	Proxy     string           // URL of the HTTP proxy to coordinator and relays; "": the environment's; NoProxy
	NoPortmap bool             // do not ask the router for a port mapping
	Userspace bool             // no interface, no routes, no root: TCP/IP in this process; Interface means nothing then
	HostPorts bool             // with Userspace: what this machine listens on answers at the node's address, as with an interface
	Version   string           // shown in status
	Log       *slog.Logger     // nil: slog.Default()
	Ready     func()           // called once, when the first plan is applied; may be nil
}

// filled returns o with its defaults in place, or what is wrong with it.
func (o Options) filled() (Options, error) {
	set := func(s *string, def string) {
		if *s == "" {
			*s = def
		}
	}
	set(&o.StateDir, DefaultStateDir)
	set(&o.Socket, DefaultSocket)
	if o.Userspace {
		o.Interface = "" // there is none
	} else {
		set(&o.Interface, DefaultInterface)
	}
	if o.Role == "" {
		o.Role = coord.RoleMember
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Ready == nil {
		o.Ready = func() {}
	}
	// 15 is IFNAMSIZ less its terminating zero; the rest is what Linux refuses.
	if len(o.Interface) > 15 || o.Interface == "." || o.Interface == ".." || strings.ContainsAny(o.Interface, "/: \t\n") {
		return o, fault(ExitUsage, "choose a word of at most 15 characters with --interface, e.g. ovl1",
			"%q cannot be the name of an interface", o.Interface)
	}
	// 107 is what sun_path holds, less its terminating zero.
	if len(o.Socket) > 107 {
		return o, fault(ExitUsage, "choose a shorter path with --socket",
			"socket path %q is longer than 107 bytes", o.Socket)
	}
	for _, p := range o.Advertise {
		if err := checkAdvertised(p); err != nil {
			return o, err
		}
	}
	return o, nil
}

// checkAdvertised refuses prefixes that no gateway may offer, whatever its
// network looks like.
func checkAdvertised(p netip.Prefix) error {
	switch {
	case !p.IsValid():
		return fault(ExitUsage, "write it as 192.168.1.0/24", "an advertised prefix is malformed")
	case p != p.Masked():
		return fault(ExitUsage, "did you mean "+p.Masked().String()+"?",
			"advertise %s: the address has bits set beyond the prefix length", p)
	case p.Bits() == 0:
		return fault(ExitUsage, "advertise the networks behind this gateway one by one, e.g. 192.168.1.0/24",
			"advertise %s: a default route cannot be advertised", p)
	case !p.Addr().Is4():
		return fault(ExitUsage, "advertise an IPv4 prefix, e.g. 192.168.1.0/24",
			"advertise %s: only IPv4 prefixes can be advertised", p)
	}
	return nil
}

package overlay

import (
	"net/netip"
	"slices"
	"strings"
	"sync"

	"overlayd/overlay/coord"
)

// insideFile keeps what is in inside over restarts.
const insideFile = "inside.json"

const (
	// mostInside bounds the networks that are remembered: many times what one
	// network has gateways for. Beyond it the oldest go.
	mostInside = 1024
	// mostInsideDomains likewise; a LAN tells eight at most.
	mostInsideDomains = 256
)

// inside is what this node was ever told to be of its network: the overlay, what
// gateways offer, the domains of their LANs. None of it is ever sought outside, not
// even when the gateway is gone or no longer for this machine: at home, in a café,
// the same address is somebody else's.
type inside struct {
	mu    sync.Mutex // guards what follows
	know  savedInside
	blind bool // the file could not be read, so nothing is certainly outside
}

// savedInside is the file.
type savedInside struct {
	Schema   int            `json:"schema"`
	Prefixes []netip.Prefix `json:"prefixes"` // the oldest first
	Domains  []string       `json:"domains"`
}

// load takes what the file says.
func (i *inside) load(d stateDir) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	_, err := d.readJSON(insideFile, &i.know)
	i.blind = err != nil
	return err
}

// learn adds what a map says, and saves it if that is news.
func (i *inside) learn(d stateDir, m *coord.Map) error {
	prefixes := []netip.Prefix{m.Overlay}
	for _, n := range append([]coord.Node{m.Self}, m.Peers...) {
		for _, r := range n.Routes {
			prefixes = append(prefixes, r.Prefix)
		}
	}
	return i.add(d, prefixes, nil)
}

// learnDomains adds domains of LANs.
func (i *inside) learnDomains(d stateDir, domains []string) error { return i.add(d, nil, domains) }

func (i *inside) add(d stateDir, prefixes []netip.Prefix, domains []string) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.blind {
		return nil // the file stays as it is
	}
	know := i.know
	know.Schema = stateSchema
	know.Prefixes = withNew(know.Prefixes, prefixes, mostInside)
	know.Domains = withNew(know.Domains, domains, mostInsideDomains)
	if slices.Equal(know.Prefixes, i.know.Prefixes) && slices.Equal(know.Domains, i.know.Domains) {
		return nil
	}
	i.know = know
	return d.writeJSON(insideFile, know)
}

// withNew appends what is not there yet, and keeps the newest of too many.
func withNew[T comparable](have, more []T, most int) []T {
	all := slices.Clone(have)
	for _, v := range more {
		if !slices.Contains(all, v) {
			all = append(all, v)
		}
	}
	return all[max(len(all)-most, 0):]
}

// prefix returns the network of which an address is or was; the zero value: it is
// outside.
func (i *inside) prefix(a netip.Addr) netip.Prefix {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.blind {
		return netip.PrefixFrom(a, a.BitLen())
	}
	for _, p := range i.know.Prefixes {
		if p.Contains(a) {
			return p
		}
	}
	return netip.Prefix{}
}

// domain returns the domain of a LAN that a name is in; "": none.
func (i *inside) domain(name string) string {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, d := range i.know.Domains {
		if name == d || strings.HasSuffix(name, "."+d) {
			return d
		}
	}
	return ""
}

// isHost reports whether an address may be that of a host outside: none of this
// machine's loopback, of a link, of many.
func isHost(a netip.Addr) bool {
	return a.IsGlobalUnicast() && (!a.Is4() || a.As4()[0] != 0)
}

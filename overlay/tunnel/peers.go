package tunnel

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"overlayd/overlay/key"
)

// Peer is one peer as it should be.
type Peer struct {
	Key        key.Public
	Endpoint   string         // what the Bind's ParseEndpoint takes
	AllowedIPs []netip.Prefix // what it may send from, and is sent to
	Keepalive  time.Duration  // whole seconds; 0: none

	// Device says that the peer is a stock WireGuard that this machine carries
	// for: it has no Endpoint, but is wherever its last authentic datagram came
	// from. What it sends to others, and what others send to it, goes back into
	// WireGuard.
	Device bool
}

// Stat is what WireGuard counted for one peer. The bytes are those on the wire,
// handshakes included.
type Stat struct {
	RxBytes, TxBytes uint64
	LastHandshake    time.Time // zero: never
	Endpoint         string    // as the Bind names it; "": there is none
}

// config is what a device has.
type config struct {
	peers map[key.Public]Peer
	stats map[key.Public]Stat
}

// parseConfig reads the answer to WireGuard's "get" operation.
func parseConfig(text string) (config, error) {
	c := config{peers: map[key.Public]Peer{}, stats: map[key.Public]Stat{}}
	var p Peer
	var s Stat
	var sec, nsec int64
	keep := func() {
		if p.Key.IsZero() {
			return
		}
		if sec != 0 || nsec != 0 {
			s.LastHandshake = time.Unix(sec, nsec)
		}
		c.peers[p.Key], c.stats[p.Key] = p, s
	}
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		var err error
		switch name {
		case "public_key":
			keep()
			p, s, sec, nsec = Peer{}, Stat{}, 0, 0
			p.Key, err = key.ParsePublicHex(value)
		case "endpoint":
			p.Endpoint, s.Endpoint = value, value
		case "allowed_ip":
			var prefix netip.Prefix
			prefix, err = netip.ParsePrefix(value)
			p.AllowedIPs = append(p.AllowedIPs, prefix)
		case "persistent_keepalive_interval":
			var n int64
			n, err = strconv.ParseInt(value, 10, 32)
			p.Keepalive = time.Duration(n) * time.Second
		case "rx_bytes":
			s.RxBytes, err = strconv.ParseUint(value, 10, 64)
		case "tx_bytes":
			s.TxBytes, err = strconv.ParseUint(value, 10, 64)
		case "last_handshake_time_sec":
			sec, err = strconv.ParseInt(value, 10, 64)
		case "last_handshake_time_nsec":
			nsec, err = strconv.ParseInt(value, 10, 64)
		}
		if err != nil { // the names above carry no secrets
			return config{}, fmt.Errorf("read wireguard's %s: %w", name, err)
		}
	}
	keep()
	return c, nil
}

// normalize returns the peer as a device would give it back.
func (p Peer) normalize() Peer {
	ips := make([]netip.Prefix, 0, len(p.AllowedIPs))
	for _, ip := range p.AllowedIPs {
		ips = append(ips, ip.Masked())
	}
	slices.SortFunc(ips, netip.Prefix.Compare)
	p.AllowedIPs = slices.Compact(ips)
	p.Keepalive = p.Keepalive.Truncate(time.Second)
	return p
}

// diff returns WireGuard's "set" operation that leads from have to want, ""
// when nothing needs doing. All that is taken away comes before all that is
// given: a prefix has one owner, and may be about to change it.
func diff(have map[key.Public]Peer, want []Peer) string {
	var take, give strings.Builder
	wanted := make(map[key.Public]bool, len(want))
	for _, w := range want {
		w = w.normalize()
		wanted[w.Key] = true
		h, known := have[w.Key]
		h = h.normalize()
		if w.Device {
			// WireGuard lets a peer roam that had no endpoint when it was made: one
			// that is another now is made anew.
			h.Endpoint = ""
			if known && (!slices.Equal(h.AllowedIPs, w.AllowedIPs) || h.Keepalive != w.Keepalive) {
				fmt.Fprintf(&take, "public_key=%s\nremove=true\n", w.Key.Hex())
				h, known = Peer{}, false
			}
		}
		writeTaken(&take, h, w)
		writeGiven(&give, h, w, known)
	}
	for k := range have {
		if !wanted[k] {
			fmt.Fprintf(&take, "public_key=%s\nremove=true\n", k.Hex())
		}
	}
	return take.String() + give.String()
}

func writeTaken(b *strings.Builder, have, want Peer) {
	head := fmt.Sprintf("public_key=%s\nupdate_only=true\n", want.Key.Hex())
	for _, p := range have.AllowedIPs {
		if !slices.Contains(want.AllowedIPs, p) {
			b.WriteString(head)
			fmt.Fprintf(b, "allowed_ip=-%s\n", p)
			head = ""
		}
	}
}

func writeGiven(b *strings.Builder, have, want Peer, known bool) {
	var lines strings.Builder
	if have.Endpoint != want.Endpoint {
		fmt.Fprintf(&lines, "endpoint=%s\n", want.Endpoint)
	}
	if have.Keepalive != want.Keepalive {
		fmt.Fprintf(&lines, "persistent_keepalive_interval=%d\n", want.Keepalive/time.Second)
	}
	for _, p := range want.AllowedIPs {
		if !slices.Contains(have.AllowedIPs, p) {
			fmt.Fprintf(&lines, "allowed_ip=%s\n", p)
		}
	}
	if known && lines.Len() == 0 {
		return
	}
	fmt.Fprintf(b, "public_key=%s\n", want.Key.Hex())
	if known {
		b.WriteString("update_only=true\n")
	}
	b.WriteString(lines.String())
}

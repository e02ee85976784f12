package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"overlayd/overlay"
)

// screenLines is what `overlayd status` keeps to: the height of a terminal.
const screenLines = 24

// style colours words for a terminal. The zero value leaves them as they are.
type style struct{ colour bool }

func (s style) paint(code, word string) string {
	if !s.colour {
		return word
	}
	return "\x1b[" + code + "m" + word + "\x1b[0m"
}

func (s style) good(word string) string    { return s.paint("32", word) }
func (s style) warning(word string) string { return s.paint("33", word) }
func (s style) bad(word string) string     { return s.paint("31", word) }

// writeStatus prints a status on one screen.
func writeStatus(w io.Writer, s overlay.Status, now time.Time, st style) {
	head := statusHead(s, st)
	health := statusHealth(s, st)
	routes := routeTable(s.Routes)
	hidden := 0
	// Half of what the head leaves is for the routes at most; they are few.
	if most := max(4, (screenLines-len(head)-len(health))/2); len(routes) > most {
		hidden = len(routes) - most
		routes = routes[:most]
	}
	for _, line := range head {
		fmt.Fprintln(w, line)
	}
	// the peers get the lines that are left, less an empty line before each part and the "more" lines
	left := screenLines - len(head) - len(health) - len(routes) - 5
	writePeersWithin(w, s.Peers, now, max(3, left))
	if len(s.Routes) > 0 {
		fmt.Fprintln(w)
		routes.write(w)
		if hidden > 0 {
			fmt.Fprintf(w, "and %d more: overlayd routes\n", hidden)
		}
	}
	if len(health) > 0 {
		fmt.Fprintln(w)
		for _, line := range health {
			fmt.Fprintln(w, line)
		}
	}
}

// statusHead says what this machine is and how it is connected.
func statusHead(s overlay.Status, st style) []string {
	var lines []string
	add := func(key, format string, args ...any) {
		lines = append(lines, fmt.Sprintf("%-10s", key)+fmt.Sprintf(format, args...))
	}
	add("state", "%s", stateWord(s.State, st))
	node := fmt.Sprintf("%s, %s, %s", orUnknown(s.Node.Name), addrsText(s.Node.IPs), orUnknown(s.Node.Role))
	if s.Node.Interface != "" {
		node += " on " + s.Node.Interface
	}
	add("node", "%s", node)
	n := s.Network
	if n.Overlay != nil {
		text := n.Overlay.String()
		if n.MapVersion != nil {
			text += fmt.Sprintf(", map %d", *n.MapVersion)
		}
		if n.MapAgeMS != nil {
			text += fmt.Sprintf(", heard %s ago", roughly(time.Duration(*n.MapAgeMS)*time.Millisecond))
		}
		add("network", "%s", text)
	}
	add("control", "%s", controlText(n.Control, st))
	for i, r := range s.Relays {
		if i == 3 {
			add("", "and %d more relays", len(s.Relays)-i)
			break
		}
		add("relay", "%s", relayText(r, st))
	}
	return lines
}

func stateWord(state string, st style) string {
	word := strings.ReplaceAll(state, "_", " ")
	switch state {
	case overlay.StateReady:
		return st.good(word)
	case overlay.StateDegraded, overlay.StateStopped:
		return st.bad(word)
	}
	return st.warning(word)
}

func controlText(c overlay.StatusControl, st style) string {
	word := orUnknown(c.State)
	if c.State == "connected" {
		word = st.good(word)
	} else {
		word = st.warning(word)
	}
	if c.Endpoint == "" {
		return word
	}
	return word + ", " + c.Endpoint
}

func relayText(r overlay.StatusRelay, st style) string {
	state := orUnknown(r.State)
	switch r.State {
	case "own":
		return r.Name + ", this machine, " + r.Endpoint
	case "up":
		state = st.good(state)
	default:
		state = st.warning(state)
	}
	text := fmt.Sprintf("%s, %s, %s", r.Name, state, r.Endpoint)
	if r.Transport != "" {
		text += " " + r.Transport
	}
	if r.RTTMS != nil {
		text += ", " + msText(r.RTTMS)
	}
	return text
}

// statusHealth lists what is wrong and what to do about it, worst first.
func statusHealth(s overlay.Status, st style) []string {
	items := slices.Clone(s.Health)
	slices.SortStableFunc(items, func(a, b overlay.HealthItem) int {
		return cmp.Compare(severityRank(a.Severity), severityRank(b.Severity))
	})
	var lines []string
	for i, h := range items {
		if i == 4 {
			lines = append(lines, fmt.Sprintf("and %d more: overlayd status --json", len(items)-i))
			break
		}
		word := h.Severity
		switch h.Severity {
		case overlay.SeverityError:
			word = st.bad(word)
		case overlay.SeverityWarning:
			word = st.warning(word)
		}
		lines = append(lines, fmt.Sprintf("%s: %s (%s)", word, oneLine(h.Title), h.ID))
		if h.Fix != "" {
			lines = append(lines, "  fix: "+oneLine(h.Fix))
		}
	}
	return lines
}

func severityRank(severity string) int {
	return slices.Index([]string{overlay.SeverityError, overlay.SeverityWarning, overlay.SeverityInfo}, severity)
}

// writePeersWithin prints the peers that matter most, and how many are left out.
func writePeersWithin(w io.Writer, peers []overlay.StatusPeer, now time.Time, lines int) {
	fmt.Fprintln(w)
	if len(peers) == 0 {
		fmt.Fprintln(w, "no other machines yet")
		return
	}
	shown := slices.Clone(peers)
	slices.SortStableFunc(shown, func(a, b overlay.StatusPeer) int {
		return cmp.Compare(peerRank(a), peerRank(b))
	})
	if most := lines - 2; len(shown) > most { // less the head and the last line
		shown = shown[:max(1, most)]
	}
	peerTable(shown, now).write(w)
	if rest := len(peers) - len(shown); rest > 0 {
		online := 0
		for _, p := range peers {
			if p.Online {
				online++
			}
		}
		fmt.Fprintf(w, "and %d more, %d of %d online: overlayd peers\n", rest, online, len(peers))
	}
}

// peerRank puts first what others depend on, then who is there.
func peerRank(p overlay.StatusPeer) int {
	switch {
	case p.Role == "gateway":
		return 0
	case p.Role == "relay":
		return 1
	case p.Online:
		return 2
	}
	return 3
}

func peerTable(peers []overlay.StatusPeer, now time.Time) table {
	var t table
	t.row("PEER", "ADDRESS", "ROLE", "PATH", "RTT", "RECEIVED", "SENT", "HANDSHAKE")
	for _, p := range peers {
		handshake := unknown
		if p.LastHandshakeAt != nil {
			handshake = roughly(now.Sub(*p.LastHandshakeAt)) + " ago"
		}
		t.row(p.Name, addrsText(p.IPs), p.Role, pathText(p), msText(p.RTTMS),
			bytesText(p.RxBytes), bytesText(p.TxBytes), handshake)
	}
	return t
}

// pathText says how packets reach a peer, and why not better.
func pathText(p overlay.StatusPeer) string {
	path := p.Path
	text := strings.TrimSpace(path.Kind + " " + path.Transport)
	switch {
	case !p.Online:
		return "offline"
	case path.Kind == "" || path.Kind == "none":
		text = "none"
	case path.Kind == "direct" && path.Endpoint != "":
		text += " " + path.Endpoint
	}
	if path.Reason != "" {
		text += " (" + path.Reason + ")"
	}
	return text
}

func routeTable(routes []overlay.StatusRoute) table {
	var t table
	t.row("ROUTE", "VIA", "STATE", "NOTE")
	for _, r := range routes {
		t.row(r.Prefix.String(), orUnknown(r.Via), r.State, oneLine(r.Reason))
	}
	return t
}

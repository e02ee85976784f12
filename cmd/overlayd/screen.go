package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"overlayd/overlay"
	"overlayd/overlay/coord"
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
	head, health := statusHead(s, st), healthLines(s.Health, st)
	var told []string
	for _, h := range s.Health {
		told = append(told, h.ID)
	}
	shown := whyLines(s.Peers, 2, told...)
	if len(shown) > 0 && len(health) > 0 {
		shown = append(shown, "")
	}
	health = append(shown, health...)
	const between = 3 // empty lines between the four parts
	left := screenLines - between - len(head) - len(health)
	routes := screenful(len(s.Routes), max(left/3, 3))
	peers := screenful(len(s.Peers), max(left-routes.lines, 3))

	printLines(w, head)
	fmt.Fprintln(w)
	if len(s.Peers) == 0 {
		fmt.Fprintln(w, nobody(s))
	} else {
		peerTable(weightiest(s.Peers)[:peers.rows], s.Relays, now).write(w)
		if rest := len(s.Peers) - peers.rows; rest > 0 {
			fmt.Fprintf(w, "and %d more, %d of %d online: overlayd peers\n", rest, online(s.Peers), len(s.Peers))
		}
	}
	if len(s.Routes) > 0 {
		fmt.Fprintln(w)
		routeTable(s.Routes[:routes.rows]).write(w)
		if rest := len(s.Routes) - routes.rows; rest > 0 {
			fmt.Fprintf(w, "and %d more: overlayd routes\n", rest)
		}
	}
	if len(health) > 0 {
		fmt.Fprintln(w)
		printLines(w, health)
	}
}

// part is a table's share of the screen.
type part struct{ rows, lines int }

// screenful says how much of a table with n rows fits into most lines, with its
// head and, when it is cut, a last line that says so.
func screenful(n, most int) part {
	switch {
	case n == 0:
		return part{0, 1}
	case n+1 <= most:
		return part{n, n + 1}
	}
	return part{max(most-2, 1), max(most, 3)}
}

func printLines(w io.Writer, lines []string) {
	for _, l := range lines {
		fmt.Fprintln(w, l)
	}
}

func online(peers []overlay.StatusPeer) (n int) {
	for _, p := range peers {
		if p.Online {
			n++
		}
	}
	return n
}

// weightiest returns the peers with those first that others depend on, then
// those that are there.
func weightiest(peers []overlay.StatusPeer) []overlay.StatusPeer {
	sorted := slices.Clone(peers)
	slices.SortStableFunc(sorted, func(a, b overlay.StatusPeer) int {
		return cmp.Compare(peerRank(a), peerRank(b))
	})
	return sorted
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
	} else if s.Node.Userspace {
		node += " in user space"
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
		add("relay", "%s", relayText(r, len(s.Relays) > 1, st))
	}
	if s.SSH != nil {
		add("ssh", "%s, %d logged in, key %s", s.SSH.Listen, s.SSH.Sessions, s.SSH.Fingerprint)
	}
	if len(s.Exposures) > 0 {
		add("published", "%s", exposuresText(s.Exposures, st))
	}
	return lines
}

// exposuresText says in one line what is published.
func exposuresText(list []overlay.StatusExposure, st style) string {
	conns, words := 0, []string{}
	for _, e := range list {
		conns += e.Connections
		word := e.Listen
		if e.State != coord.ExposureListening || e.Problem != "" {
			word = st.bad(word + " " + e.State)
		}
		if len(words) < 4 {
			words = append(words, word)
		}
	}
	if rest := len(list) - len(words); rest > 0 {
		words = append(words, fmt.Sprintf("%d more", rest))
	}
	return fmt.Sprintf("%s; %d open: overlayd expose list", strings.Join(words, ", "), conns)
}

// nobody says why there are no peers: a map has only those that one may talk to.
func nobody(s overlay.Status) string {
	if s.Network.MapVersion == nil {
		return "no other machines yet"
	}
	return "there is no other machine that this one may talk to"
}

func stateWord(state string, st style) string {
	word := strings.ReplaceAll(state, "_", " ")
	switch state {
	case overlay.StateReady:
		return st.good(word)
	case overlay.StateDegraded, overlay.StateStopped, overlay.StateDisabled:
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

func relayText(r overlay.StatusRelay, several bool, st style) string {
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
	if r.State == overlay.ProofDegraded && r.ProofAgeMS != nil {
		text += fmt.Sprintf(", answered %s ago", roughly(time.Duration(*r.ProofAgeMS)*time.Millisecond))
	}
	if r.Nearest && several {
		text += ", nearest"
	}
	return text
}

// healthLines lists what is wrong and what to do about it, worst first.
func healthLines(health []overlay.HealthItem, st style) []string {
	items := slices.Clone(health)
	slices.SortStableFunc(items, func(a, b overlay.HealthItem) int {
		return cmp.Compare(severityRank(a.Severity), severityRank(b.Severity))
	})
	var lines []string
	for i, h := range items {
		if i == 3 {
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

func peerTable(peers []overlay.StatusPeer, relays []overlay.StatusRelay, now time.Time) table {
	var t table
	t.row("PEER", "ADDRESS", "ROLE", "PATH", "RTT", "RECEIVED", "SENT", "HANDSHAKE")
	for _, p := range peers {
		handshake := unknown
		if p.LastHandshakeAt != nil {
			handshake = roughly(now.Sub(*p.LastHandshakeAt)) + " ago"
		}
		t.row(p.Name, addrsText(p.IPs), p.Role, pathText(p, relays), msText(p.RTTMS),
			bytesText(p.RxBytes), bytesText(p.TxBytes), handshake)
	}
	return t
}

// pathText says how packets reach a peer, and why not better.
func pathText(p overlay.StatusPeer, relays []overlay.StatusRelay) string {
	path := p.Path
	text := strings.TrimSpace(path.Kind + " " + path.Transport)
	switch {
	case p.Online && path.Kind == "relay":
		text = strings.TrimSpace("relay " + relayName(relays, path) + path.Transport)
	case !p.Online:
		return "offline"
	case path.Kind == "" || path.Kind == "none":
		text = "none"
	case path.Kind == "direct" && path.Endpoint != "":
		text += " " + path.Endpoint
	}
	if p.Online && path.Kind == "relay" && path.Transport == "local" {
		text = "from the relay here"
	}
	own := strings.TrimSpace(relayName(relays, path)) == p.Name && path.Transport != "local"
	if p.Role == "relay" && path.Kind == "relay" && path.Reason == "" && own { // nothing lies in between
		text = "the relay itself, " + path.Transport
	}
	if p.State == overlay.ProofDegraded {
		text += ", degraded"
	}
	if path.Reason != "" {
		text += " (" + reasonOf(path.Reason, path.Transport).short + ")"
	}
	return text
}

// relayName names the relay on a path, and puts a space behind its name. The only
// one there is may be known by another address.
func relayName(relays []overlay.StatusRelay, path overlay.StatusPath) string {
	if path.Relay != "" {
		return path.Relay + " "
	}
	for _, r := range relays {
		if r.Endpoint == path.Endpoint || len(relays) == 1 {
			return r.Name + " "
		}
	}
	return ""
}

func routeTable(routes []overlay.StatusRoute) table {
	var t table
	t.row("ROUTE", "VIA", "STATE", "NOTE")
	for _, r := range routes {
		t.row(r.Prefix.String(), orUnknown(r.Via), r.State, oneLine(r.Reason))
	}
	return t
}

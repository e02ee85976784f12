package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"overlayd/overlay"
)

// netcheckTimeout is more than the daemon takes: a proxy that hangs costs it five
// seconds.
const netcheckTimeout = 15 * time.Second

func (p *program) netcheckCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "netcheck",
		Short: "measure what the network lets through",
		Long: `Measure what the network that this machine is on lets through: UDP by IPv4 and
IPv6, how its NAT gives out ports, TLS to each relay, by the proxy if there is one,
and the round trips. Then say what that means, and what to do about it.

The daemon measures with the sockets that carry the traffic. While none runs, a
machine that has joined measures with sockets of its own, as root. Ends with 7 when
no relay answers in any way.`,
		Example: `  overlayd netcheck
  overlayd netcheck --json | jq -r .ipv4.mapping`,
		Args: words(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), netcheckTimeout)
			defer cancel()
			c, err := p.netcheck(ctx)
			if err != nil {
				return err
			}
			if p.common.json {
				err = printJSON(p.stdout, c)
			} else {
				writeNetcheck(p.stdout, c, p.style())
			}
			if err == nil && c.UDP != overlay.NetWorks && c.TLS != overlay.NetWorks && c.TLS != overlay.NetFull && len(c.Findings) > 0 {
				return quiet(overlay.ExitUnreachable)
			}
			return err
		},
	}
	p.jsonFlag(cmd)
	return cmd
}

// netcheck asks the daemon, or measures without one.
func (p *program) netcheck(ctx context.Context) (overlay.Netcheck, error) {
	c, err := p.engine.dial(p.common.socket).Netcheck(ctx)
	if err == nil || asFault(err).Code != overlay.ExitNotRunning {
		return c, err
	}
	alone, aloneErr := p.engine.netcheck(ctx, p.common.options())
	if aloneErr != nil && asFault(aloneErr).Code == overlay.ExitNotJoined {
		return c, err
	}
	return alone, aloneErr
}

// writeNetcheck prints a check on one screen.
func writeNetcheck(w io.Writer, c overlay.Netcheck, st style) {
	if len(c.Relays) > 0 && !slices.ContainsFunc(c.Relays, func(r overlay.NetcheckRelay) bool { return r.InUse != "local" }) {
		fmt.Fprintf(w, "this machine is the relay, %s: run netcheck on the others, which have to reach it\n", c.Relays[0].Endpoint)
		if dropped := droppedText(c.Counters); dropped != "" {
			fmt.Fprintf(w, "dropped since the start: %s\n", dropped)
		}
		return
	}
	line := func(key, format string, args ...any) {
		fmt.Fprintf(w, "%-10s"+format+"\n", append([]any{key}, args...)...)
	}
	line("udp", "%s", netWord(c.UDP, st))
	line("ipv4", "%s", familyText(c.IPv4, st))
	line("ipv6", "%s", familyText(c.IPv6, st))
	line("nat", "%s", natText(c.IPv4))
	if c.PortMapping != nil {
		line("port map", "%s", portMappingText(*c.PortMapping))
	}
	line("tls", "%s", netWord(c.TLS, st))
	proxy := "none"
	if c.Proxy != nil {
		proxy = fmt.Sprintf("%s, from the %s", oneLine(c.Proxy.Host), c.Proxy.Source)
	}
	line("proxy", "%s", proxy)
	if !c.ByDaemon {
		line("", "no daemon runs: measured with sockets of its own, whose ports are not the daemon's")
	}
	if len(c.Relays) > 0 {
		fmt.Fprintln(w)
		netcheckTable(c.Relays).write(w)
	}
	if dropped := droppedText(c.Counters); dropped != "" {
		fmt.Fprintf(w, "\ndropped since the start: %s\n", dropped)
	}
	if lines := healthLines(c.Findings, st); len(lines) > 0 {
		fmt.Fprintln(w)
		printLines(w, lines)
	}
}

func netWord(state string, st style) string {
	word := strings.ReplaceAll(state, "_", " ")
	switch state {
	case overlay.NetWorks:
		return st.good(word)
	case overlay.NetSilent, overlay.NetFull:
		return st.bad(word)
	}
	return st.warning(word)
}

func familyText(f overlay.NetcheckFamily, st style) string {
	switch f.State {
	case overlay.NetMissing:
		return "this machine has no address of that kind"
	case overlay.NetUntried:
		return "not tried: no relay has an address of that kind"
	}
	text := netWord(f.State, st)
	if f.SeenAs != nil {
		text += ", seen as " + *f.SeenAs
	}
	return text
}

// natText says in words how the NAT maps and filters.
func natText(f overlay.NetcheckFamily) string {
	text := "unknown"
	switch f.Mapping {
	case "none":
		text = "none: others see this machine's own address"
	case "endpoint_independent":
		text = "easy: everybody sees the same port (endpoint-independent mapping)"
	case "address_or_port_dependent":
		text = "hard: every destination sees another port (symmetric)"
	case "unknown":
		if f.SeenAs != nil {
			text = "yes; whether everybody sees the same port is unknown"
		}
	}
	if f.Filtering == "endpoint_independent" {
		text += ", lets in who was not asked"
	}
	return text
}

// portMappingText says what the router forwards to us, or why nothing.
func portMappingText(m overlay.StatusPortMapping) string {
	text := strings.ReplaceAll(m.Reason, "_", " ")
	if m.External != nil {
		text = m.External.String() + " by " + m.Protocol
		if m.Reason != "" {
			text += ", of no use: " + strings.ReplaceAll(m.Reason, "_", " ")
		}
	}
	if m.Detail != "" {
		text += ": " + oneLine(m.Detail)
	}
	return text
}

func netcheckTable(relays []overlay.NetcheckRelay) table {
	var t table
	t.row("RELAY", "ADDRESS", "UDP", "TLS CONNECT", "IN USE")
	for _, r := range relays {
		tls := msText(r.TLS.ConnectMS)
		if r.TLS.Reason != "" {
			tls = strings.ReplaceAll(r.TLS.Reason, "_", " ")
		}
		if len(r.UDP) == 0 {
			t.row(r.Name, r.Endpoint, unknown, tls, orUnknown(r.InUse))
		}
		for i, e := range r.UDP {
			udp := msText(e.RTTMS)
			switch {
			case e.RTTMS == nil && e.Error != "":
				udp = oneLine(e.Error)
			case e.RTTMS == nil:
				udp = "no answer"
			}
			if i == 0 {
				t.row(r.Name, e.Addr, udp, tls, orUnknown(r.InUse))
			} else {
				t.row("", e.Addr, udp, "", "")
			}
		}
	}
	return t
}

// droppedText names what was dropped, and how often.
func droppedText(counters []overlay.Counter) string {
	var words []string
	for _, c := range counters {
		if strings.Contains(c.Name, "drop_") && c.Value > 0 {
			words = append(words, fmt.Sprintf("%s %d", strings.Replace(c.Name, "drop_", "", 1), c.Value))
		}
	}
	return strings.Join(words, ", ")
}

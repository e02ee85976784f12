package main

import (
	"fmt"
	"slices"
	"strings"

	"overlayd/overlay"
)

// why is a reason for a path that is not direct, in words.
type why struct {
	short string // in a table
	long  string // a sentence's end
	fix   string // what to do; empty: nothing
}

// reasons are those of a path that status gives.
var reasons = map[string]why{
	"idle": {"idle", "nothing was sent lately, so no direct path is looked for",
		"it is looked for as soon as there is traffic: overlayd ping NAME --until-direct"},
	"probing": {"looking for a direct path", "a direct path is still being looked for, which takes seconds",
		"wait for it with overlayd ping NAME --until-direct"},
	"lossy": {"direct path loses packets", "the direct path loses a tenth of the packets or more, so the relay is better",
		"it is tried again by itself; a cable in place of a bad radio link helps"},
	"no_common_family": {"no common IPv4 or IPv6", "one side has only IPv4 and the other only IPv6",
		"give one side an address of the other's kind"},
	"symmetric_nat_both": {"NATs let no hole through", "the NATs, or firewalls, on both sides let no hole be punched",
		"on one side forward a UDP port to the machine and start overlayd there with --port N --advertise-endpoint PUBLIC-IP:N"},
	"udp_blocked": {"UDP blocked here", "this network lets no UDP out, so TLS carries the traffic",
		"let UDP to the relay's port out of this network; overlayd netcheck shows whether it passes"},
	"peer_offline": {"offline", "it is not connected to the coordinator", "start overlayd there, and look at overlayd status on it"},
	"peer_silent":  {"does not answer", "it answers nothing, neither directly nor by the relay", "see that it is on, and what overlayd status says there"},
	"mtu": {"direct path loses large packets", "the direct path loses packets that are as large as the tunnel's, so the relay is better",
		"it is tried again by itself; a network on the way has a smaller MTU and does not say so"},
	"relay_down":   {"relay away", "its relay does not answer", "see the relay's line"},
	"no_relay":     {"no relay", "the coordinator names no relay", "look at overlayd status on the VPS"},
	"unknown_peer": {"not in the map", "the coordinator's list does not have it", "wait for the next map"},
}

// blockedThere is udp_blocked while this machine reaches the relay by UDP.
var blockedThere = why{"UDP blocked there", "the network on the other side lets no UDP out",
	"let UDP to the relay's port out there; overlayd netcheck, run there, shows whether it passes"}

// reasonOf finds the words for a reason, which may depend on the transport.
func reasonOf(reason, transport string) why {
	if reason == "udp_blocked" && transport == "udp" {
		return blockedThere
	}
	if w, ok := reasons[reason]; ok {
		return w
	}
	if reason == "" {
		return why{short: "", long: "no reason is known", fix: "overlayd netcheck"}
	}
	word := strings.ReplaceAll(reason, "_", " ")
	return why{short: word, long: word, fix: "overlayd netcheck"}
}

// quietReasons need no explanation beside the table, or have one in a health item.
var quietReasons = []string{"", "idle", "peer_offline", "relay_down", "no_relay", "unknown_peer"}

// whyLines explains the paths that are not direct, one reason after the other,
// with what to do about it; but for those reasons that are told elsewhere.
func whyLines(peers []overlay.StatusPeer, most int, quiet ...string) []string {
	type kind struct{ reason, transport string }
	var order []kind
	names := map[kind][]string{}
	for _, p := range peers {
		r := p.Path.Reason
		if !p.Online || slices.Contains(quietReasons, r) || slices.Contains(quiet, r) {
			continue
		}
		k := kind{r, p.Path.Transport}
		if names[k] == nil {
			order = append(order, k)
		}
		names[k] = append(names[k], p.Name)
	}
	var lines []string
	for i, k := range order {
		if i == most {
			lines = append(lines, fmt.Sprintf("and %d more reasons: overlayd peers", len(order)-i))
			break
		}
		w := reasonOf(k.reason, k.transport)
		lines = append(lines, fmt.Sprintf("%s not direct: %s (%s)", someNames(names[k]), w.long, k.reason))
		if w.fix != "" {
			lines = append(lines, "  fix: "+strings.ReplaceAll(w.fix, "NAME", names[k][0]))
		}
	}
	return lines
}

// someNames names a few, and counts the others.
func someNames(names []string) string {
	if len(names) <= 3 {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:2], ", "), len(names)-2)
}

package overlay

import (
	"fmt"
	"time"

	"overlayd/overlay/coord"
	"overlayd/overlay/record"
	"overlayd/overlay/relay"
	"overlayd/overlay/underlay"
)

// health lists what is wrong with a node beyond what its plan says. It is pure.
func health(v view, relays []underlay.RelayStatus, now time.Time) []HealthItem {
	items := []HealthItem{}
	barred := membershipHealth(v.m)
	items = append(append(items, barred...), expiryHealth(v.m, now)...)
	cutOff := v.m != nil && v.live != nil && !anyUp(relays) && len(barred) == 0
	if !v.outage.since.IsZero() {
		title := fmt.Sprintf("no contact with the coordinator for %s", now.Sub(v.outage.since).Round(time.Second))
		if v.outage.err != nil {
			title += ": " + v.outage.err.Error()
		}
		fix := "check that overlayd runs on the first relay, and that its TCP port can be reached from here, through the proxy if one is set"
		if !cutOff {
			fix = "tunnels go on with the last map; " + fix
		}
		items = append(items, HealthItem{ID: "coordinator_unreachable", Severity: SeverityError, Title: title, Fix: fix})
	}
	if cutOff {
		items = append(items, HealthItem{
			ID: "relay_unreachable", Severity: SeverityError, Title: noRelayTitle(relays), Fix: noRelayFix(relays),
		})
	}
	for _, r := range relays {
		if !cutOff && len(barred) == 0 && r.State == relay.Lost.String() {
			items = append(items, HealthItem{
				ID: "relay_unreachable", Severity: SeverityWarning,
				Title: relayTitle(r) + "; the others carry its traffic", Fix: obstacleFix(r.Reason),
			})
		}
		if r.State == relay.Up.String() && r.Reason == underlay.ReasonUDPBlocked {
			items = append(items, HealthItem{
				ID: r.Reason, Severity: SeverityWarning,
				Title: fmt.Sprintf("UDP to relay %s is blocked: its traffic goes by TLS, which is slower", r.Name),
				Fix:   fmt.Sprintf("let UDP to %s out of this network; it is used as soon as it passes", r.Endpoint),
			})
		}
	}
	if v.failed != nil {
		items = append(items, HealthItem{
			ID: "host_not_applied", Severity: SeverityError,
			Title: "this machine does not match its plan: " + oneLine(v.failed.Error()),
			Fix:   "`overlayd plan` shows what should be; it is tried again every few seconds",
		})
	}
	if v.plan != nil {
		items = append(items, v.plan.Health...)
	}
	return items
}

// membershipHealth says why a node takes no part: it has no peers then, and no
// relay lets it attach.
func membershipHealth(m *coord.Map) []HealthItem {
	if m == nil {
		return nil
	}
	switch m.Self.State {
	case coord.NodePending:
		return []HealthItem{{
			ID: "needs_approval", Severity: SeverityWarning,
			Title: "this machine waits until an admin lets it in",
			Fix:   "an admin says yes with `overlayd nodes approve " + m.Self.Name + "`",
		}}
	case coord.NodeDisabled:
		return []HealthItem{{
			ID: "node_disabled", Severity: SeverityError,
			Title: "an admin disabled this machine, or its user",
			Fix:   "ask an admin; `overlayd users enable` or `overlayd nodes enable " + m.Self.Name + "` undoes it",
		}}
	case coord.NodeExpired:
		return []HealthItem{{
			ID: "key_expired", Severity: SeverityError,
			Title: "the key of this machine expired at " + m.Self.Expires.UTC().Format(time.RFC3339),
			Fix:   renewFix(m.Self),
		}}
	}
	return nil
}

// refusedHealth tells of what a policy refused: nothing is broken, and whoever
// wonders why something does not work looks here.
func refusedHealth(refusals []StatusRefusal, now time.Time) []HealthItem {
	if len(refusals) == 0 {
		return nil
	}
	last := refusals[0]
	by := ""
	if last.By != "" {
		by = " that " + last.By + " enforces"
	}
	title := fmt.Sprintf("%s was refused by the policy%s, %s ago", last.Target, by, now.Sub(last.At).Round(time.Second))
	if n := len(refusals) - 1; n > 0 {
		title += fmt.Sprintf("; and %d more of late: overlayd status --json", n)
	}
	return []HealthItem{{
		ID: HealthRefused, Severity: SeverityInfo, Title: title,
		Fix: "ask for access: overlayd request " + last.Target,
	}}
}

// barred says why a node takes no part; nil: it does.
func barred(m *coord.Map) *coord.Problem {
	items := membershipHealth(m)
	if len(items) == 0 {
		return nil
	}
	kind := coord.KindDenied
	if m.Self.State == coord.NodePending {
		kind = coord.KindPending
	}
	return &coord.Problem{Kind: kind, Message: items[0].Title, Hint: items[0].Fix}
}

// controlHealth lists what is wrong with the coordinator's record of changes.
func controlHealth(s record.Status) []HealthItem {
	if s.Err == nil {
		return nil
	}
	return []HealthItem{{
		ID: "control_record_stopped", Severity: SeverityError,
		Title: fmt.Sprintf("changes are not recorded since %s: %s", s.Since.UTC().Format(time.RFC3339), oneLine(s.Err.Error())),
		Fix:   "make room in the state directory; policy and traffic go on, and the record as soon as it can be written",
	}}
}

// health lists what is wrong with a node's policy and its record.
func (e enforced) health() (items []HealthItem) {
	if e.failed != nil {
		items = append(items, HealthItem{
			ID: "policy_not_applied", Severity: SeverityError,
			Title: "the newest policy cannot be used, so the one before is in force: " + oneLine(e.failed.Error()),
			Fix:   "bring overlayd to the same version here and on the relay",
		})
	}
	if e.absent {
		items = append(items, HealthItem{
			ID: "policy_absent", Severity: SeverityWarning,
			Title: "the coordinator has no policy: every member may reach everything",
			Fix:   "bring overlayd on the relay to this version",
		})
	}
	if e.unkept != nil {
		items = append(items, HealthItem{
			ID: "record_stopped", Severity: SeverityError,
			Title: "flows are not recorded: " + oneLine(e.unkept.Error()),
			Fix:   "make room in the state directory; traffic and policy go on, and the record as soon as it can be written",
		})
	}
	return items
}

func anyUp(relays []underlay.RelayStatus) bool {
	for _, r := range relays {
		if r.State == relay.Up.String() {
			return true
		}
	}
	return false
}

func noRelayTitle(relays []underlay.RelayStatus) string {
	if len(relays) == 0 {
		return "no relay is known to lead to the other nodes"
	}
	title := relayTitle(relays[0])
	if n := len(relays) - 1; n > 0 {
		title += fmt.Sprintf("; nor does any of the %d others", n)
	}
	return title
}

func relayTitle(r underlay.RelayStatus) string {
	title := fmt.Sprintf("relay %s at %s does not answer over UDP", r.Name, r.Endpoint)
	if r.Detail != "" {
		title += ", nor is there a way by TLS: " + oneLine(r.Detail)
	}
	return title
}

func noRelayFix(relays []underlay.RelayStatus) string {
	if len(relays) == 0 {
		return obstacleFix("")
	}
	return obstacleFix(relays[0].Reason)
}

// obstacleFix is the next step when an obstacle stands before a relay's TLS.
func obstacleFix(obstacle string) string {
	switch relay.Obstacle(obstacle) {
	case relay.ObstacleProxy:
		return "check the proxy's address (--proxy, or HTTPS_PROXY in the daemon's environment) and that it lets CONNECT to the relay through"
	case relay.ObstaclePortal:
		return "open any web page in a browser and log in to this network"
	case relay.ObstacleIntercepted:
		return "somebody on the way reads TLS: let the relay's address out without that, or allow UDP to it"
	case relay.ObstacleFull:
		return "allow UDP to the relay, which needs no connections there"
	}
	return "check that overlayd runs on the relay and that its port is open there and here, UDP or TCP"
}

// nodeState is the one word for a node.
func nodeState(v view, items []HealthItem) string {
	if v.over != "" {
		return v.over
	}
	if v.m != nil && v.m.Self.State == coord.NodePending {
		return StateNeedsApproval
	}
	if v.m != nil && v.m.Self.State == coord.NodeExpired {
		return StateExpired
	}
	if v.m != nil && v.m.Self.State == coord.NodeDisabled {
		return StateDisabled
	}
	if v.m == nil || v.plan == nil || v.live == nil {
		return StateStarting
	}
	for _, h := range items {
		if h.Severity == SeverityError {
			return StateDegraded
		}
	}
	if v.m.Self.Role == coord.RoleGateway && len(v.m.Self.Routes) > 0 && !v.plan.Routing.Forward {
		return StateNeedsApproval
	}
	return StateReady
}

// oneLine joins the lines of errors.Join.
func oneLine(s string) string {
	b := []byte(s)
	for i := range b {
		if b[i] == '\n' {
			b[i] = ';'
		}
	}
	return string(b)
}

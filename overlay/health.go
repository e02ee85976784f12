package overlay

import (
	"fmt"
	"time"

	"overlayd/overlay/coord"
	"overlayd/overlay/relay"
	"overlayd/overlay/underlay"
)

// health lists what is wrong with a node beyond what its plan says. It is pure.
func health(v view, relays []underlay.RelayStatus, ownRelay bool, now time.Time) []HealthItem {
	items := []HealthItem{}
	cutOff := v.m != nil && v.live != nil && !ownRelay && !anyUp(relays)
	if !v.outage.since.IsZero() {
		title := fmt.Sprintf("the coordinator cannot be reached for %s", now.Sub(v.outage.since).Round(time.Second))
		if v.outage.err != nil {
			title += ": " + v.outage.err.Error()
		}
		fix := "check that overlayd runs on the relay and its TCP port is open"
		if !cutOff {
			fix = "tunnels go on with the last map; " + fix
		}
		items = append(items, HealthItem{ID: "coordinator_unreachable", Severity: SeverityError, Title: title, Fix: fix})
	}
	if cutOff {
		items = append(items, HealthItem{
			ID: "relay_unreachable", Severity: SeverityError, Title: relayTitle(relays),
			Fix: "check that overlayd runs on the relay and that its UDP port is open there and here",
		})
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

func anyUp(relays []underlay.RelayStatus) bool {
	for _, r := range relays {
		if r.State == relay.Up.String() {
			return true
		}
	}
	return false
}

func relayTitle(relays []underlay.RelayStatus) string {
	if len(relays) == 0 {
		return "no relay is known to lead to the other nodes"
	}
	return fmt.Sprintf("relay %s at %s does not answer over UDP", relays[0].Name, relays[0].Endpoint)
}

// nodeState is the one word for a node.
func nodeState(v view, items []HealthItem) string {
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

package overlay

import (
	"strings"
	"testing"
	"time"

	"overlayd/overlay/coord"
)

// Status tells of a key's end 30, 7 and 1 day ahead, and what to do.
func TestExpiryHealth(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	const day = 24 * time.Hour
	for _, tt := range []struct {
		name     string
		self     coord.Node
		severity string // empty: nothing is said
		says     string
	}{
		{"never", coord.Node{State: coord.NodeActive}, "", ""},
		{"31 days", coord.Node{State: coord.NodeActive, Expires: now.Add(31 * day)}, "", ""},
		{"30 days", coord.Node{State: coord.NodeActive, Expires: now.Add(30 * day)}, SeverityInfo, "in 30 days"},
		{"8 days", coord.Node{State: coord.NodeActive, Expires: now.Add(8 * day)}, SeverityInfo, "in 8 days"},
		{"7 days", coord.Node{State: coord.NodeActive, Expires: now.Add(7 * day)}, SeverityWarning, "in 7 days"},
		{"a day", coord.Node{State: coord.NodeActive, Expires: now.Add(day)}, SeverityWarning, "in 24h0m0s"},
		{"an hour", coord.Node{State: coord.NodeActive, Expires: now.Add(time.Hour)}, SeverityWarning, "in 1h0m0s"},
		{"over", coord.Node{State: coord.NodeActive, Expires: now}, SeverityWarning, "now"},
		{"expired", coord.Node{State: coord.NodeExpired, Expires: now}, SeverityError, "expired at 2026-05-01T12:00:00Z"},
		{"waiting", coord.Node{State: coord.NodePending, Expires: now}, SeverityWarning, "waits"},
	} {
		tt.self.Name, tt.self.User = "laptop", "alice"
		m := &coord.Map{Self: tt.self}
		items := append(membershipHealth(m), expiryHealth(m, now)...)
		switch {
		case tt.severity == "" && len(items) == 0:
		case len(items) != 1 || items[0].Severity != tt.severity || !strings.Contains(items[0].Title, tt.says) || items[0].Fix == "":
			t.Errorf("%s: %+v", tt.name, items)
		}
	}
	if s := nodeState(view{m: &coord.Map{Self: coord.Node{State: coord.NodeDisabled}}}, nil); s != StateDisabled {
		t.Errorf("a disabled node is %s", s)
	}
	if s := nodeState(view{m: &coord.Map{Self: coord.Node{State: coord.NodeExpired}}}, nil); s != StateExpired {
		t.Errorf("the state is %s", s)
	}
}

func TestLinkIsForRenewal(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		self coord.Node
		want bool
	}{
		{coord.Node{State: coord.NodeActive}, false},
		{coord.Node{State: coord.NodeActive, Expires: now.Add(remindAhead + time.Hour)}, false},
		{coord.Node{State: coord.NodeActive, Expires: now.Add(remindAhead)}, true},
		{coord.Node{State: coord.NodeExpired}, true},
	} {
		if got := dueForRenewal(&coord.Map{Self: tt.self}, now); got != tt.want {
			t.Errorf("%+v: %v", tt.self, got)
		}
	}
	if dueForRenewal(nil, now) {
		t.Error("a node without a map is due")
	}
}

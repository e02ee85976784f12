package overlay

import (
	"slices"
	"testing"
	"time"

	"overlayd/overlay/coord"
	"overlayd/overlay/underlay"
)

// TestAttachments: round trips change all the time, and what is reported goes to
// all nodes, so they are told only where there is a choice.
func TestAttachments(t *testing.T) {
	near := underlay.RelayStatus{ID: "1", Attached: true, Cost: 20 * time.Millisecond}
	far := underlay.RelayStatus{ID: "2", Attached: true, Cost: 90 * time.Millisecond}
	down := underlay.RelayStatus{ID: "2", Cost: 90 * time.Millisecond}
	for name, c := range map[string]struct {
		relays []underlay.RelayStatus
		want   []coord.Attachment
	}{
		"none":          {},
		"one":           {[]underlay.RelayStatus{near}, []coord.Attachment{{Relay: "1"}}},
		"two":           {[]underlay.RelayStatus{near, far}, []coord.Attachment{{Relay: "1", Cost: near.Cost}, {Relay: "2", Cost: far.Cost}}},
		"two, one down": {[]underlay.RelayStatus{near, down}, []coord.Attachment{{Relay: "1", Cost: near.Cost}}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := attachments(c.relays); !slices.Equal(got, c.want) {
				t.Errorf("%v", got)
			}
		})
	}
}

package overlay

import (
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect"

	"overlayd/overlay/coord"
	"overlayd/overlay/key"
	"overlayd/overlay/local"
)

const (
	// remindAhead is when status begins to tell of a key's end, and warnAhead when
	// that is a warning. On the last day it counts the hours.
	remindAhead = 30 * 24 * time.Hour
	warnAhead   = 7 * 24 * time.Hour
	lastDay     = 24 * time.Hour
)

// expiryHealth tells of the end of this machine's key while there is time.
func expiryHealth(m *coord.Map, now time.Time) []HealthItem {
	if m == nil || m.Self.State != coord.NodeActive || m.Self.Expires.IsZero() {
		return nil
	}
	left := m.Self.Expires.Sub(now)
	item := HealthItem{ID: "key_expires", Severity: SeverityWarning, Fix: renewFix(m.Self) + "; nothing is interrupted"}
	at := m.Self.Expires.UTC().Format(time.RFC3339)
	switch {
	case left > remindAhead:
		return nil
	case left <= 0: // and the map is about to say so
		item.Title = "the key of this machine expires now, at " + at
	case left <= lastDay:
		item.Title = fmt.Sprintf("the key of this machine expires in %s, at %s", left.Round(time.Second), at)
	default:
		if left > warnAhead {
			item.Severity = SeverityInfo
		}
		item.Title = fmt.Sprintf("the key of this machine expires in %d days, at %s", int(left/lastDay), at)
	}
	return []HealthItem{item}
}

// renewFix is what to do about a key that has expired, or is about to.
func renewFix(self coord.Node) string {
	return fmt.Sprintf("an admin says `overlayd nodes renew %s`, or `overlayd invite --user %s` and this machine `overlayd renew LINK`",
		self.Name, self.User)
}

// renew uses an invite to let this machine's key hold longer.
func (n *Node) renew(ctx context.Context, text string) error {
	link, err := coord.ParseLink(text)
	if err != nil {
		return err
	}
	if n.id.Pin != link.Pin || n.id.Pin.IsZero() && n.id.Endpoint != link.Endpoint {
		return &coord.Problem{Kind: coord.KindConflict, Message: "the link is for another network", Hint: "ask for a link of this one, " + n.id.Endpoint}
	}
	return renewAt(ctx, n.coord, n.id, n.keys.current(), link)
}

func renewAt(ctx context.Context, c *coord.Client, id *identity, k key.Private, link coord.Link) error {
	_, err := c.Enroll(ctx, coord.EnrollRequest{
		Invite: link.Invite, Secret: link.Secret, Name: id.Name, Role: id.Role, WireGuard: k.Public(), Renew: true,
	})
	return err
}

// dueForRenewal reports whether a link that a member was started with is for its
// key: it has expired, or is about to.
func dueForRenewal(m *coord.Map, now time.Time) bool {
	return m != nil && (m.Self.State == coord.NodeExpired || !m.Self.Expires.IsZero() && m.Self.Expires.Sub(now) <= remindAhead)
}

// Renew uses an invite to let this machine's key hold longer.
func (l *Local) Renew(ctx context.Context, link string) error {
	_, err := l.api.Renew(ctx, connect.NewRequest(&local.RenewRequest{Link: link}))
	if err != nil {
		return l.fault(err)
	}
	return nil
}

func (s localService) Renew(ctx context.Context, req *connect.Request[local.RenewRequest]) (*connect.Response[local.RenewResponse], error) {
	if err := s.n.renew(ctx, req.Msg.Link); err != nil {
		return nil, coord.Refusal(err)
	}
	return connect.NewResponse(&local.RenewResponse{}), nil
}

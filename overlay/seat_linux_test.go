package overlay

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"overlayd/overlay/coord"
	"overlayd/overlay/jump"
)

// TestDialAs: what somebody does by the hub's machine comes from that person's
// own address, and the policy holds also for what is on that machine.
func TestDialAs(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	dir := t.TempDir()
	h, ended := startHub(t, dir)
	defer func() {
		h.node.Stop()
		if err := <-ended; err != nil {
			t.Errorf("run: %v", err)
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	l := Dial(filepath.Join(dir, "sock"))
	defer l.Close()
	admin := l.Admin()
	for _, name := range []string{"alice", "bob"} {
		if _, err := admin.AddUser(ctx, name, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := admin.ApplyPolicy(ctx, "rules:\n  - {name: vps, src: alice, dst: relays, ports: tcp/7000}\n"); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "172.18.0.10:7000")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()

	c, err := h.dialAs(ctx, "alice", "tcp", "172.18.0.10:7000")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	served, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer served.Close()
	seat, err := h.seat(ctx, "alice")
	if from := served.RemoteAddr().(*net.TCPAddr).AddrPort().Addr(); err != nil || from != seat || from == netip.MustParseAddr("172.18.0.10") {
		t.Errorf("alice comes from %s, her seat is %s (%v)", from, seat, err)
	}
	if u, err := h.dialAs(ctx, "alice", "udp", "172.18.0.10:7000"); !isReason(err, ReasonPolicy) {
		t.Errorf("alice by udp: %v, %v", u, err)
	}
	for _, at := range []string{"127.0.0.1:7000", "203.0.113.10:443", "8.8.8.8:53"} {
		if _, err := h.dialAs(ctx, "alice", "tcp", at); !isReason(err, ReasonOutside) {
			t.Errorf("alice to %s: %v", at, err)
		}
	}
	if _, err := h.dialAs(ctx, "bob", "tcp", "172.18.0.10:7000"); !isReason(err, ReasonPolicy) {
		t.Errorf("bob: %v", err)
	}
	if _, err := h.dialAs(ctx, "alice", "tcp", netip.AddrPortFrom(seat, 7000).String()); !isReason(err, ReasonPolicy) {
		t.Errorf("alice to her own seat: %v", err)
	}
	endsWithPolicy(ctx, t, h, admin)
	if s, err := l.Status(ctx); err != nil || len(s.Hosted) != 2 || s.Hosted[0].Kind != "seat" || s.Hosted[0].Host != "vps" {
		t.Errorf("status: %+v, %v", s.Hosted, err)
	}
	if _, err := admin.Revoke(ctx, "alice"); err != nil {
		t.Fatal(err)
	}
	_, err = h.dialAs(ctx, "alice", "tcp", "172.18.0.10:7000")
	if p, ok := coord.AsProblem(err); !ok || p.Kind != coord.KindDenied {
		t.Errorf("alice, revoked: %v", err)
	}
}

// endsWithPolicy: what leads to this very machine ends when the policy allows it no
// more.
func endsWithPolicy(ctx context.Context, t *testing.T, h *Hub, admin *coord.Admin) {
	t.Helper()
	users, err := admin.Users(ctx)
	if err != nil {
		t.Fatal(err)
	}
	id := users[slices.IndexFunc(users, func(u coord.User) bool { return u.Name == "alice" })].ID
	guest, err := h.guest.dialJump(ctx, jump.Guest{ID: id, Name: "alice"}, "172.18.0.10", 7000)
	if err != nil {
		t.Fatal(err)
	}
	defer guest.Close()
	if _, err := admin.ApplyPolicy(ctx, "rules: []\n"); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	guest.SetReadDeadline(began.Add(10 * time.Second))
	if _, err := guest.Read(make([]byte, 1)); err == nil {
		t.Error("the connection goes on")
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it ended after %s", took)
	}
}

func isReason(err error, want DialReason) bool {
	e, ok := errors.AsType[*DialError](err)
	return ok && e.Reason == want
}

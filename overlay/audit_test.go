package overlay

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"

	"overlayd/overlay/filter"
	"overlayd/overlay/record"
)

// written makes a record of these lines.
func written(t *testing.T, dir, name string, chain bool, values ...any) {
	t.Helper()
	out, err := record.Open(dir, name, record.Options{Chain: chain})
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range values {
		out.Append(v)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := out.Run(ctx); err != nil {
		t.Fatal(err)
	}
}

func flowAt(second int, kind filter.EventKind, user, target string) FlowLine {
	return lineOf(&filter.Event{
		Kind: kind, At: testNow.Add(time.Duration(second) * time.Second), Began: testNow, User: user, Node: user + "-1", Proto: protoTCP,
		Remote: netip.MustParseAddrPort("172.18.0.11:40000"), Local: netip.MustParseAddrPort(target), Rule: "ssh",
	})
}

// TestAuditor: two records are one by time, and what is asked for is what comes.
func TestAuditor(t *testing.T) {
	dir := t.TempDir()
	written(t, dir, flowsName, false,
		flowAt(1, filter.FlowBegan, "alice", "192.168.1.201:22"),
		flowAt(3, filter.FlowDenied, "alice", "192.168.1.201:80"),
		flowAt(5, filter.FlowBegan, "bob", "192.168.1.7:22"))
	type event struct {
		Time    time.Time `json:"time"`
		Who     string    `json:"who"`
		Call    string    `json:"call"`
		Refused string    `json:"refused,omitempty"`
	}
	written(t, dir, eventsName, true,
		event{testNow.Add(2 * time.Second), "root", "AddUser", ""},
		event{testNow.Add(4 * time.Second), "user:alice", "Revoke", "alice is no admin"})
	for _, tt := range []struct {
		name string
		q    AuditQuery
		want string // the seconds
	}{
		{"all", AuditQuery{}, "1 2 3 4 5"},
		{"since", AuditQuery{Since: testNow.Add(2 * time.Second)}, "3 4 5"},
		{"denied", AuditQuery{Denied: true}, "3 4"},
		{"a user", AuditQuery{User: "alice"}, "1 3 4"},
		{"an address", AuditQuery{Host: "192.168.1.201"}, "1 3"},
		{"an address and a port", AuditQuery{Host: "192.168.1.201:80"}, "3"},
		{"a prefix", AuditQuery{Host: "192.168.1.0/25"}, "5"},
		{"a node", AuditQuery{Host: "bob-1"}, "5"},
		{"nobody", AuditQuery{Host: "nobody"}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			a := auditor{dir: dir, query: tt.q, seen: map[string]uint64{}, each: func(line []byte) error {
				var l auditLine
				if err := json.Unmarshal(line, &l); err != nil {
					return err
				}
				got = append(got, l.At.Format("5"))
				return nil
			}}
			if err := a.read(flowsName, eventsName); err != nil {
				t.Fatal(err)
			}
			if s := strings.Join(got, " "); s != tt.want {
				t.Errorf("seconds %s, want %s", s, tt.want)
			}
			got = nil
			if err := a.read(eventsName); err != nil || len(got) > 0 {
				t.Errorf("read again: %v, %v", got, err)
			}
		})
	}
	broken := errors.New("gone away")
	a := auditor{dir: dir, seen: map[string]uint64{}, each: func([]byte) error { return broken }}
	if err := a.read(flowsName); !errors.Is(err, broken) {
		t.Errorf("a reader that hung up: %v", err)
	}
}

// TestWhoisFromRecord: the port that the host saw leads to the person, also when
// the flow is over.
func TestWhoisFromRecord(t *testing.T) {
	dir := t.TempDir()
	began := flowAt(0, filter.FlowBegan, "alice", "192.168.1.201:22")
	began.SeenAs = "192.168.1.200:50001"
	written(t, dir, flowsName, false, began, flowAt(9, filter.FlowEnded, "alice", "192.168.1.201:22"),
		flowAt(10, filter.FlowDenied, "bob", "192.168.1.201:23"))
	n := &Node{o: Options{StateDir: dir}, guard: newEnforcer(slog.New(slog.DiscardHandler)), flows: newFlowRecord(slog.New(slog.DiscardHandler), dir)}
	n.view.m = gatewayMap(1)
	n.view.m.Peers[0].User = "alice"
	for target, want := range map[string]int{
		"192.168.1.200:50001": 1, "192.168.1.200": 1, "192.168.1.200:50002": 0, "192.168.1.201": 2, "192.168.1.201:23": 1, "172.18.0.11:40000": 2,
	} {
		w, err := n.whois(target, testNow)
		if err != nil || len(w.Recorded) != want || len(w.Live) != 0 {
			t.Errorf("%s: %+v, %v, want %d", target, w, err, want)
		}
		if target == "192.168.1.200:50001" && (w.Recorded[0].Event != EventFlowEnded || w.Recorded[0].SeenAs != began.SeenAs) {
			t.Errorf("%s: %+v", target, w.Recorded[0])
		}
	}
	w, err := n.whois("172.18.0.11", testNow)
	if err != nil || w.Person == nil || *w.Person != (WhoisPerson{User: "alice", Node: "laptop"}) {
		t.Errorf("%+v, %v", w, err)
	}
	if _, err := n.whois("nonsense", testNow); err == nil || AsFault(err).Code != ExitUsage {
		t.Errorf("nonsense: %v", err)
	}
}

// TestFlowRecord: what the filter tells is in the file and comes to those who
// follow; a record that cannot be opened is a loud health item.
func TestFlowRecord(t *testing.T) {
	dir := t.TempDir()
	r := newFlowRecord(slog.New(slog.DiscardHandler), filepath.Join(dir, "none"))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.run(ctx) }()
	event := filter.Event{Kind: filter.FlowDenied, At: testNow, User: "alice", Proto: protoUDP,
		Remote: netip.MustParseAddrPort("172.18.0.11:5"), Local: netip.MustParseAddrPort("192.168.1.201:53"), Why: filter.WhyPolicy}
	for {
		if _, err := r.status(); err != nil {
			if !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("it failed: %v", err)
			}
			break
		}
	}
	r.note(&event) // it is lost, and nobody waits
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if items := (enforced{unkept: fs.ErrNotExist}).health(); len(items) != 1 || items[0].ID != "record_stopped" || items[0].Severity != SeverityError {
		t.Errorf("%+v", items)
	}

	r = newFlowRecord(slog.New(slog.DiscardHandler), dir)
	ctx, cancel = context.WithCancel(t.Context())
	go func() { done <- r.run(ctx) }()
	lines, stop := r.follow()
	for {
		r.mu.Lock()
		open := r.out != nil
		r.mu.Unlock()
		if open {
			break
		}
	}
	r.note(&event)
	if l := <-lines; l.User != "alice" || l.Verdict != "denied" || l.Target != "192.168.1.201:53" || l.Protocol != "udp" {
		t.Errorf("followed %+v", l)
	}
	stop()
	r.note(&event)
	if err := r.sync(t.Context()); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, flowsName+".jsonl"))
	if err != nil || strings.Count(string(b), `"event":"flow_denied"`) != 2 {
		t.Errorf("%s, %v", b, err)
	}
}

// TestFollow: what comes is handed on once, however much of it came in one moment,
// or was on its way into the file when the reading began.
func TestFollow(t *testing.T) {
	r := newFlowRecord(slog.New(slog.DiscardHandler), t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	recording := make(chan error, 1)
	go func() { recording <- r.run(ctx) }()
	for open := false; !open; {
		r.mu.Lock()
		open = r.out != nil
		r.mu.Unlock()
	}
	at := time.Now()
	note := func(port uint16, at time.Time) {
		r.note(&filter.Event{Kind: filter.FlowDenied, At: at, User: "alice", Proto: protoUDP, Why: filter.WhyPolicy,
			Remote: netip.MustParseAddrPort("172.18.0.11:5"), Local: netip.AddrPortFrom(nasAddr, port)})
	}
	note(1, at)
	var got []string
	more, following := make(chan string), make(chan error, 1)
	follow, stop := context.WithCancel(ctx)
	n := &Node{o: Options{StateDir: r.dir}, flows: r}
	go func() {
		following <- n.audit(follow, AuditQuery{Follow: true}, func(line []byte) error {
			var l FlowLine
			err := json.Unmarshal(line, &l)
			more <- l.Target
			return err
		})
	}()
	note(2, at) // before or after the reading began
	for range 2 {
		got = append(got, <-more)
	}
	note(3, at.Add(time.Millisecond))
	note(4, at.Add(time.Millisecond)) // the same batch
	note(5, at)                       // and what is told late
	for range 3 {
		got = append(got, <-more)
	}
	stop()
	if err := <-following; err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-recording; err != nil {
		t.Error(err)
	}
	want := make([]string, 5)
	for i := range want {
		want[i] = netip.AddrPortFrom(nasAddr, uint16(i+1)).String()
	}
	if !slices.Equal(got, want) {
		t.Errorf("followed %q, want %q", got, want)
	}
}

// TestRefusedEcho: only an error that quotes this very request says that it is
// refused.
func TestRefusedEcho(t *testing.T) {
	p := pinger{addr: nasAddr, id: 7}
	refusal := func(code, id, seq int, dst netip.Addr) []byte {
		echo, err := (&icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: id, Seq: seq}}).Marshal(nil)
		if err != nil {
			t.Fatal(err)
		}
		h, err := (&ipv4.Header{Version: 4, Len: 20, TotalLen: 20 + len(echo), Protocol: protoICMP, Src: aliceAddr.AsSlice(), Dst: dst.AsSlice()}).Marshal()
		if err != nil {
			t.Fatal(err)
		}
		b, err := (&icmp.Message{Type: ipv4.ICMPTypeDestinationUnreachable, Code: code, Body: &icmp.DstUnreach{Data: append(h, echo...)}}).Marshal(nil)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for name, tt := range map[string]struct {
		b    []byte
		want bool
	}{
		"ours":               {refusal(13, 7, 2, nasAddr), true},
		"host unreachable":   {refusal(1, 7, 2, nasAddr), false},
		"another's":          {refusal(13, 8, 2, nasAddr), false},
		"an older one's":     {refusal(13, 7, 1, nasAddr), false},
		"of another address": {refusal(13, 7, 2, aliceAddr), false},
		"truncated":          {refusal(13, 7, 2, nasAddr)[:30], false},
		"empty":              {nil, false},
	} {
		if got := p.refuses(tt.b, 2); got != tt.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

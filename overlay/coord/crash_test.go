package coord

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"overlayd/overlay/key"
	"overlayd/overlay/record"
)

// crashEnv makes the test binary the victim of TestCrash: it holds the path of
// the database.
const crashEnv = "OVERLAYD_COORD_CRASH_DB"

// crashServer opens a coordinator without a network around it; with events, it
// keeps a record of its changes beside the store.
func crashServer(path string, events *Events) (*Server, *Bolt, error) {
	store, err := OpenBolt(path)
	if err != nil {
		return nil, nil, err
	}
	s, err := NewServer(ServerOptions{
		Store: store, Overlay: testOverlay, Endpoint: "127.0.0.1:443", Log: slog.New(slog.DiscardHandler), Events: events,
	})
	if err != nil {
		store.Close()
		return nil, nil, err
	}
	return s, store, nil
}

// runCrashChild joins, renames, approves and removes until it is killed, and
// says on standard output what it was told had been kept.
func runCrashChild() {
	path := os.Getenv(crashEnv)
	if path == "" {
		return
	}
	dir := filepath.Dir(path)
	// Small files, so that some victims die while they rotate.
	log, err := record.Open(dir, "control", record.Options{Chain: true, MaxBytes: 64 << 10, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		fmt.Println("failed", err)
		os.Exit(1)
	}
	s, _, err := crashServer(path, &Events{Dir: dir, Name: "control", Log: log})
	if err != nil {
		fmt.Println("failed", err)
		os.Exit(1)
	}
	go log.Run(context.Background())
	fmt.Println("open")
	local := httptest.NewServer(s.AdminHandler())
	admin, ctx := NewAdmin(local.Client(), local.URL), context.Background()
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := 0; ; i++ {
				if err := crashRound(ctx, s, admin, w, i); err != nil {
					fmt.Println("failed", err)
					os.Exit(1)
				}
			}
		})
	}
	wg.Wait()
}

func crashRound(ctx context.Context, s *Server, admin *Admin, worker, i int) error {
	link, err := s.Invite(ctx, Invite{})
	if err != nil {
		return err
	}
	machine := key.NewMachine()
	var n nodeRecord
	err = s.ledger.change(ctx, func(snap *snapshot) (changes []Record, err error) {
		n, changes, err = snap.enroll(machine.Public(), EnrollRequest{
			Invite: link.Invite, Secret: link.Secret, Name: "n", WireGuard: key.NewPrivate().Public(),
		}, newID("n", 11), time.Now())
		return changes, err
	})
	if err != nil {
		return err
	}
	fmt.Println("joined", n.ID, n.Label, link.Invite)
	if _, err := admin.RenameNode(ctx, n.ID, fmt.Sprintf("%s-w%d-%d", n.ID, worker, i)); err != nil {
		return err
	}
	if i%2 == 0 {
		return crashRevocation(ctx, s, admin, worker, i)
	}
	if i%4 == 3 {
		if _, err := admin.RemoveNode(ctx, n.ID); err != nil {
			return err
		}
		fmt.Println("removed", n.ID, n.Label, link.Invite)
	}
	return nil
}

// crashRevocation lets somebody in, with a grant, changes the policy, and takes
// all of it away.
func crashRevocation(ctx context.Context, s *Server, admin *Admin, worker, i int) error {
	u, err := admin.AddUser(ctx, newID("user", 11), nil, nil)
	if err != nil {
		return err
	}
	link, err := s.Invite(ctx, Invite{User: u.Name})
	if err != nil {
		return err
	}
	var n nodeRecord
	machine, id := key.NewMachine(), newID("n", 11)
	err = s.ledger.change(ctx, func(snap *snapshot) (changes []Record, err error) {
		n, changes, err = snap.enroll(machine.Public(), EnrollRequest{
			Invite: link.Invite, Secret: link.Secret, Name: id, WireGuard: key.NewPrivate().Public(),
		}, id, time.Now())
		return changes, err
	})
	if err != nil {
		return err
	}
	fmt.Println("joined", n.ID, n.Label, link.Invite)
	if _, err := admin.Grant(ctx, u.Name, "10.0.0.1:22", time.Hour); err != nil {
		return err
	}
	p, err := admin.ApplyPolicy(ctx, fmt.Sprintf("# %d %d\nrules: []\n", worker, i))
	if err != nil {
		return err
	}
	fmt.Println("policy", p.Version)
	if _, err := admin.Revoke(ctx, u.Name); err != nil {
		return err
	}
	fmt.Println("revoked", u.ID, n.ID)
	return nil
}

// crashLedger is what the victims said had been kept.
type crashLedger struct {
	owner   map[string]string // label: the node that it was given to
	invites map[string]string // node: its invite
	removed map[string]bool
	revoked map[string]string // user: a node of it
	policy  uint64            // the newest version
}

// TestCrash kills a coordinator at random moments. The database opens every
// time, nothing that was acknowledged is lost or comes back, and no address is
// given twice.
func TestCrash(t *testing.T) {
	kills := 200
	if testing.Short() {
		kills = 15
	}
	path := filepath.Join(t.TempDir(), "coord.db")
	l := crashLedger{owner: map[string]string{}, invites: map[string]string{}, removed: map[string]bool{}, revoked: map[string]string{}}
	r := rand.New(rand.NewPCG(uint64(os.Getpid()), 1))
	for kill := range kills {
		v := victim{life: time.Duration(r.IntN(200)) * time.Millisecond, from: "open"}
		switch kill % 5 {
		case 0: // some die while they create or open the file: those say nothing
			v.from = ""
		case 1, 3: // and some around a revocation, which follows a policy
			v = victim{life: v.life / 4, from: "policy"}
		}
		l.sacrifice(t, path, v)
		if t.Failed() {
			return
		}
		if kill%5 == 4 || kill == kills-1 {
			l.check(t, path)
		}
	}
	t.Logf("%d kills, %d addresses given, %d users revoked, policy %d", kills, len(l.owner), len(l.revoked), l.policy)
}

// victim is a coordinator that is killed some time after it said a word; after no
// word, since it was started.
type victim struct {
	life time.Duration
	from string
}

// sacrifice runs a victim, and takes down what it says.
func (l *crashLedger) sacrifice(t *testing.T, path string, v victim) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), crashEnv+"="+path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	kill := func() { once.Do(func() { time.AfterFunc(v.life, func() { cmd.Process.Kill() }) }) }
	if v.from == "" {
		kill()
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if f[0] == v.from {
			kill()
		}
		switch {
		case f[0] == "failed":
			t.Errorf("the coordinator failed: %s", lines.Text())
			cmd.Process.Kill()
		case f[0] == "joined" && len(f) == 4:
			if other, ok := l.owner[f[2]]; ok {
				t.Errorf("the label %s was given to %s and %s", f[2], other, f[1])
			}
			l.owner[f[2]], l.invites[f[1]] = f[1], f[3]
		case f[0] == "removed" && len(f) == 4:
			l.removed[f[1]] = true
		case f[0] == "revoked" && len(f) == 3:
			l.revoked[f[1]] = f[2]
		case f[0] == "policy" && len(f) == 2:
			version, err := strconv.ParseUint(f[1], 10, 64)
			if err == nil {
				l.policy = max(l.policy, version)
			}
		}
	}
	cmd.Wait() // it was killed
}

func (l *crashLedger) check(t *testing.T, path string) {
	t.Helper()
	s, store, err := crashServer(path, nil)
	if err != nil {
		t.Fatalf("open after a kill: %v", err)
	}
	defer store.Close()
	snap := s.ledger.now()
	l.checkAccess(t, snap)
	if v, err := record.Verify(filepath.Dir(path), "control"); err != nil || len(v.Problems) > 0 {
		t.Errorf("the record after a kill: %+v, %v", v, err)
	}
	for label, id := range l.owner {
		n := snap.nodes[id]
		switch {
		case n == nil && !l.removed[id]:
			if _, retired := snap.retired[labelNumber(t, label)]; !retired { // else: killed before it said so
				t.Errorf("the node %s was lost", id)
			}
		case n != nil && l.removed[id]:
			t.Errorf("the removed node %s came back", id)
		case n != nil && fmt.Sprint(n.Label) != label:
			t.Errorf("the node %s had the label %s, now %d", id, label, n.Label)
		}
		if i := snap.invites[l.invites[id]]; i == nil || i.Used != 1 {
			t.Errorf("the invite of node %s is %+v", id, i)
		}
	}
}

// checkAccess finds what was revoked and came back.
func (l *crashLedger) checkAccess(t *testing.T, snap *snapshot) {
	t.Helper()
	if v := snap.policyVersion(); v < l.policy {
		t.Errorf("policy %d was in force, now %d", l.policy, v)
	}
	for user, node := range l.revoked {
		u, n := snap.users[user], snap.nodes[node]
		if u == nil || !u.Disabled {
			t.Errorf("the revoked user %s is %+v", user, u)
		}
		if n == nil || snap.stateOf(n) == NodeActive || n.Barred.IsZero() || len(snap.peersOf(n)) > 0 {
			t.Errorf("the node of a revoked user is %+v", n)
		}
		for _, g := range snap.grants {
			if g.User == user {
				t.Errorf("the revoked user %s has the grant %s", user, g.ID)
			}
		}
	}
}

func labelNumber(t *testing.T, s string) (n uint32) {
	t.Helper()
	if _, err := fmt.Sscan(s, &n); err != nil {
		t.Fatal(err)
	}
	return n
}

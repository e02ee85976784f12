package nat

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"strings"
	"sync"

	"github.com/coreos/go-iptables/iptables"
	"golang.org/x/sys/unix"
)

// Tables makes the firewall match a Ruleset: that of the network namespace its
// caller's thread is in.
type Tables struct {
	did     func(act string) // these are set by New, then read-only
	journal Journal
	cmd     *iptables.IPTables
	save    string // path of iptables-save
	nft     bool   // iptables keeps its rules in nftables

	mu sync.Mutex // held through Apply and Clear
}

// lockWait is how many seconds we wait for other users of iptables.
const lockWait = 10

// New finds iptables. It changes nothing yet. The error is an [Error] with a
// hint where there is no iptables.
func New(o Options) (*Tables, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	path, err := find(o.Path)
	if err != nil {
		return nil, &Error{Act: "find iptables", Err: err, hint: "apt install iptables"}
	}
	cmd, err := iptables.New(iptables.Path(path), iptables.Timeout(lockWait))
	if err != nil {
		return nil, &Error{Act: "start " + path, Err: err, hint: "apt install --reinstall iptables"}
	}
	version, err := exec.Command(path, "--version").Output()
	if err != nil {
		return nil, &Error{Act: path + " --version", Err: err}
	}
	return &Tables{
		did:     o.Did,
		journal: o.Journal,
		cmd:     cmd,
		save:    path + "-save",
		nft:     bytes.Contains(version, []byte("nf_tables")),
	}, nil
}

// find returns the path of iptables: of the one asked for, or else of the
// system's, which is not in everybody's PATH.
func find(asked string) (string, error) {
	if asked != "" {
		return exec.LookPath(asked)
	}
	path, err := exec.LookPath("iptables")
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if err == nil {
			break
		}
		if p, e := exec.LookPath(dir + "/iptables"); e == nil {
			path, err = p, nil
		}
	}
	return path, err
}

// Apply makes our chains match r, from whatever there is: a jump that another
// program moved or removed, or what a crash left. It changes only what differs,
// and no rule of anybody else.
func (t *Tables) Apply(ctx context.Context, r Ruleset) error {
	if err := r.validate(); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	have, err := t.read(ctx)
	if err != nil {
		return err
	}
	steps := diff(have, r.chains(t.cmd.HasRandomFully()))
	if len(steps) == 0 {
		return nil
	}
	if err := t.note(steps); err != nil {
		return err
	}
	return t.run(ctx, steps)
}

// Clear takes away our chains and what leads to them, also what an earlier
// process left, and then the tables that exist only because of us.
func (t *Tables) Clear(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	have, err := t.read(ctx)
	if err != nil {
		return err
	}
	if err := t.run(ctx, remove(have, func(string, string) bool { return true })); err != nil {
		return err
	}
	return t.unmake()
}

// read returns what iptables has now. It brings no table into being, as listing
// one would.
func (t *Tables) read(ctx context.Context) (saved, error) {
	out, err := exec.CommandContext(ctx, t.save).Output()
	if err != nil {
		return nil, refused(t.save, err)
	}
	return parseSaved(string(out)), nil
}

// run runs steps, and stops at the first that fails.
func (t *Tables) run(ctx context.Context, steps []step) error {
	for _, s := range steps {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := t.do(s); err != nil {
			return refused(s.String(), err)
		}
		t.did(s.String())
	}
	return nil
}

// do runs one step.
func (t *Tables) do(s step) error {
	rule := strings.Fields(s.rule)
	switch s.op {
	case newChain:
		return t.cmd.NewChain(s.table, s.chain)
	case insertRule:
		return t.cmd.Insert(s.table, s.chain, s.pos, rule...)
	case appendRule:
		return t.cmd.Append(s.table, s.chain, rule...)
	case deleteRule:
		return gone(t.cmd.Delete(s.table, s.chain, rule...))
	case deleteAt:
		return t.cmd.DeleteById(s.table, s.chain, s.pos)
	case flushChain:
		return gone(t.cmd.ClearChain(s.table, s.chain))
	case deleteChain:
		return gone(t.cmd.DeleteChain(s.table, s.chain))
	}
	return fmt.Errorf("internal error: no such step as %q", s.op)
}

// gone forgives that what was to be removed is gone already.
func gone(err error) error {
	var e *iptables.Error
	if errors.As(err, &e) && e.IsNotExist() {
		return nil
	}
	return err
}

// refused makes an Error of what iptables says, which is the last line it wrote.
func refused(act string, err error) error {
	e := &Error{Act: act, Err: err}
	said := ""
	var failed *iptables.Error
	var exit *exec.ExitError
	switch {
	case errors.As(err, &failed):
		_, said, _ = strings.Cut(failed.Error(), "]: exit status ")
		_, said, _ = strings.Cut(said, ": ")
	case errors.As(err, &exit):
		said = string(exit.Stderr)
	case errors.Is(err, fs.ErrNotExist):
		e.hint = "apt install iptables"
	}
	if said = strings.TrimSpace(said); said != "" {
		e.Err = errors.New(strings.ReplaceAll(said, "\n", "; "))
	}
	if strings.Contains(said, "Permission denied") || strings.Contains(said, "you must be root") {
		e.Err = fs.ErrPermission
		e.hint = "run as root, or with the capabilities CAP_NET_ADMIN and CAP_NET_RAW"
	}
	return e
}

// note saves what there is of the tables that steps are about to use.
func (t *Tables) note(steps []step) error {
	if !t.nft {
		return nil
	}
	var now nftTables
	for _, s := range steps {
		if _, _, ok := t.journal.Noted(kindTable, s.table); ok {
			continue
		}
		if now == nil {
			var err error
			if now, err = listNFT(); err != nil {
				return &Error{Act: "look at nftables", Err: err}
			}
		}
		if err := t.journal.Note(kindTable, s.table, now.describe(s.table), "in use"); err != nil {
			return err
		}
	}
	return nil
}

// unmake removes what of the noted tables is of no use to anybody any more.
func (t *Tables) unmake() error {
	for _, table := range t.journal.Keys(kindTable) {
		described, _, _ := t.journal.Noted(kindTable, table)
		act, err := removeLeftover(table, described)
		if err != nil {
			return &Error{Act: "remove what is left of nftables' ip " + table, Err: err}
		}
		if act != "" {
			t.did(act)
		}
		if err := t.journal.Forget(kindTable, table); err != nil {
			return err
		}
	}
	return nil
}

// listNFT lists the tables and chains of family ip.
func listNFT() (nftTables, error) {
	n, err := dialNFT()
	if err != nil {
		return nil, err
	}
	defer n.close()
	return n.tables()
}

// removeLeftover removes what of a table is there only because of us, and returns
// what that was, as a command. That it came into use meanwhile is no error.
func removeLeftover(table, described string) (act string, err error) {
	n, err := dialNFT()
	if err != nil {
		return "", err
	}
	defer n.close()
	all, err := n.tables()
	if err != nil {
		return "", err
	}
	chains, whole := all.leftover(table, described)
	if len(chains) == 0 && !whole {
		return "", nil
	}
	err = n.remove(table, chains, whole)
	switch {
	case errors.Is(err, unix.EBUSY), errors.Is(err, unix.ENOENT):
		return "", nil
	case err != nil:
		return "", err
	case whole:
		return "nft delete table ip " + table, nil
	}
	return "nft delete chain ip " + table + " " + strings.Join(chains, " "), nil
}

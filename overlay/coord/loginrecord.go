package coord

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	"overlayd/internal/limit"
	"overlayd/overlay/login"
)

// loginRecord is how a user proves to be one to a published page.
type loginRecord struct {
	User    string    `json:"user"` // its id, as in the key
	Hash    string    `json:"hash,omitempty"`
	Seed    []byte    `json:"seed,omitempty"` // of the codes
	Used    int64     `json:"used,omitempty"` // the span of the last code that was taken, of this seed
	Changed time.Time `json:"changed"`        // what was proved before counts no more
}

func putLogin(l loginRecord) Record { return put(keyLogin+l.User, l) }

// setPassword decides what another password changes; no hash takes the login
// away.
func (s *snapshot) setPassword(user, hash string, now time.Time) (userRecord, []Record, error) {
	u, err := s.user(user)
	if err != nil {
		return userRecord{}, nil, err
	}
	old := s.logins[u.ID]
	if hash == "" {
		if old == nil {
			return *u, nil, nil
		}
		return *u, []Record{drop(keyLogin + u.ID)}, nil
	}
	l := loginRecord{User: u.ID, Hash: hash, Changed: now}
	if old != nil {
		l.Seed, l.Used = old.Seed, old.Used
	}
	return *u, []Record{putLogin(l)}, nil
}

// setSeed decides what another seed changes.
func (s *snapshot) setSeed(user string, seed login.Seed, now time.Time) (userRecord, []Record, error) {
	u, err := s.user(user)
	if err != nil {
		return userRecord{}, nil, err
	}
	l := loginRecord{User: u.ID, Seed: seed.Expose(), Changed: now}
	if old := s.logins[u.ID]; old != nil {
		l.Hash = old.Hash
	}
	return *u, []Record{putLogin(l)}, nil
}

// useCode decides what it takes to take a code of a span: each is taken once, and
// only from who still has the password and the seed of l.
func (s *snapshot) useCode(l *loginRecord, span int64) ([]Record, error) {
	u, now := s.users[l.User], s.logins[l.User]
	if u == nil || u.Disabled || now == nil || now.Used >= span || now.Hash != l.Hash || !bytes.Equal(now.Seed, l.Seed) {
		return nil, errLogin
	}
	next := *now
	next.Used = span
	return []Record{putLogin(next)}, nil
}

// doorman keeps those waiting who try to get in by guessing.
type doorman struct {
	sources *limit.Failures // by address
	busy    chan struct{}   // holds a token for each hash that is worked on

	mu   sync.Mutex       // guards late
	late map[string]tries // by user: a guesser with many addresses
}

// tries are a user's failures of late.
type tries struct {
	n     int
	since time.Time
}

const (
	// hashesAtOnce bounds what logins cost: 19 MiB and a core each.
	hashesAtOnce = 2
	// userTries wrong passwords within userSpan, and the user has to wait for its
	// end wherever they came from. A name that does not exist costs the same.
	userTries = 30
	userSpan  = 15 * time.Minute
	// maxTried bounds the table of those, and maxTriedName each: nobody's name is as
	// long (checkWord).
	maxTried     = 4096
	maxTriedName = 65
)

func newDoorman() *doorman {
	return &doorman{sources: limit.NewFailures(), busy: make(chan struct{}, hashesAtOnce), late: map[string]tries{}}
}

// nobodysHash is worked on for a user without a password, so that the time says
// nothing.
var nobodysHash = sync.OnceValue(func() login.Hash { return login.NewHash(login.NewPassword()) })

// errLogin does not say which of the three was wrong.
var errLogin = problem(KindDenied, "", "the name, the password or the code is wrong")

// ErrTooMany says that somebody has to wait, whether or not he is right now.
var ErrTooMany = errors.New("too many wrong logins")

func errTooMany(wait time.Duration) error {
	return tooMany{problem(KindDenied, "wait "+wait.Round(time.Second).String(), "%v", ErrTooMany)}
}

type tooMany struct{ *Problem }

// Unwrap gives the problem, which Is alone does not find.
func (e tooMany) Unwrap() error { return e.Problem }

// Is makes it ErrTooMany.
func (tooMany) Is(target error) bool { return target == ErrTooMany }

// Login returns whose password and code these are: the user's id and name.
func (s *Server) Login(ctx context.Context, from netip.Addr, name, password, code string) (id, user string, err error) {
	d, now := s.doorman, s.o.Now()
	name = name[:min(len(name), maxTriedName)]
	if wait := d.wait(from, name, now); wait > 0 {
		return "", "", errTooMany(wait)
	}
	select {
	case d.busy <- struct{}{}:
		defer func() { <-d.busy }()
	case <-ctx.Done():
		return "", "", ctx.Err()
	}
	// Those that came together have all been let to here, whatever they guess.
	if wait := d.wait(from, name, s.o.Now()); wait > 0 {
		return "", "", errTooMany(wait)
	}
	snap := s.ledger.now()
	u := snap.userByName[name]
	var l *loginRecord
	if u != nil && !u.Disabled {
		l = snap.logins[u.ID]
	}
	hash, seed, last := nobodysHash(), login.Seed{}, int64(0)
	if l != nil {
		h, err1 := login.ParseHash(l.Hash)
		sd, err2 := login.ParseSeed(l.Seed)
		if err1 == nil && err2 == nil { // else one of the two is not set yet
			hash, seed, last = h, sd, l.Used
		}
	}
	err = errLogin
	if span, ok := seed.Check(code, now, last); hash.Matches(password) && ok {
		err = s.ledger.change(withAct(ctx, act{who: "user:" + u.Name, from: from.String(), call: "Login"}), func(snap *snapshot) ([]Record, error) {
			return snap.useCode(l, span)
		})
	}
	switch {
	case errors.Is(err, errLogin):
		d.failed(from, name, now)
		return "", "", errLogin
	case err != nil:
		s.o.Log.Error("a login cannot be kept", "user", u.Name, "err", err)
		return "", "", problem(KindUnreachable, "look at overlayd status there", "logins cannot be taken at the moment")
	}
	return u.ID, u.Name, nil
}

// wait returns how long somebody has to wait before the next attempt.
func (d *doorman) wait(from netip.Addr, name string, now time.Time) time.Duration {
	if w := d.sources.Wait(from, now); w > 0 {
		return w
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if t := d.late[name]; t.n >= userTries && now.Sub(t.since) < userSpan {
		return t.since.Add(userSpan).Sub(now)
	}
	return 0
}

func (d *doorman) failed(from netip.Addr, name string, now time.Time) {
	d.sources.Add(from, now)
	d.mu.Lock()
	defer d.mu.Unlock()
	t, ok := d.late[name]
	if !ok && len(d.late) >= maxTried {
		for other := range d.late { // somebody: a guesser with that many names is not held by this
			delete(d.late, other)
			break
		}
	}
	if now.Sub(t.since) >= userSpan {
		t = tries{since: now}
	}
	t.n++
	d.late[name] = t
}

// LoginHolds reports whether what a user proved at a time still counts.
func (s *Server) LoginHolds(id string, at time.Time) (name string, ok bool) {
	snap := s.ledger.now()
	u, l := snap.users[id], snap.logins[id]
	if u == nil || u.Disabled || l == nil || at.Before(l.Changed) {
		return "", false
	}
	return u.Name, true
}

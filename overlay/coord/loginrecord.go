package coord

import (
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
		l.Seed = old.Seed
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

// doorman lets people in by password and code. What it keeps is lost with the
// process: a code can be used again within its minute after a restart.
type doorman struct {
	sources *limit.Failures // by address
	busy    chan struct{}   // holds a token for each hash that is worked on

	mu   sync.Mutex // guards the rest
	used map[string]int64
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
	// maxTried bounds the table of those.
	maxTried = 4096
)

func newDoorman() *doorman {
	return &doorman{sources: limit.NewFailures(), busy: make(chan struct{}, hashesAtOnce), used: map[string]int64{}, late: map[string]tries{}}
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
	hash, seed := nobodysHash(), login.Seed{}
	if l != nil {
		h, err1 := login.ParseHash(l.Hash)
		sd, err2 := login.ParseSeed(l.Seed)
		if err1 == nil && err2 == nil { // else one of the two is not set yet
			hash, seed = h, sd
		}
	}
	right := hash.Matches(password)
	if !d.admit(name, right && !seed.IsZero(), func(last int64) (int64, bool) { return seed.Check(code, now, last) }) {
		d.failed(from, name, now)
		return "", "", errLogin
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

// admit takes a code, each once.
func (d *doorman) admit(name string, right bool, check func(last int64) (int64, bool)) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	used, ok := check(d.used[name])
	if !right || !ok {
		return false
	}
	d.used[name] = used // of users that there are: bounded by them
	return true
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

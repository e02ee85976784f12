package coord

import (
	"maps"
	"slices"
	"strings"
	"time"

	"overlayd/overlay/policy"
)

// grantRecord opens a target to a user for a time.
type grantRecord struct {
	ID      string    `json:"id"`
	User    string    `json:"user"` // its id
	Target  string    `json:"target"`
	Until   time.Time `json:"until"`
	By      string    `json:"by"`
	Created time.Time `json:"created"`
}

// requestRecord is a user's wish for a grant.
type requestRecord struct {
	ID      string        `json:"id"`
	User    string        `json:"user"` // its id
	Node    string        `json:"node"` // the name of the one it was asked from
	Target  string        `json:"target"`
	For     time.Duration `json:"for"`
	Created time.Time     `json:"created"`
}

func putGrant(g grantRecord) Record     { return put(keyGrant+g.ID, g) }
func putRequest(r requestRecord) Record { return put(keyRequest+r.ID, r) }

const (
	// maxGrant is a year: what is longer belongs into the policy.
	maxGrant = 366 * 24 * time.Hour
	// DefaultGrant is for how long access is asked for when nobody says.
	DefaultGrant = 4 * time.Hour
	// maxGrants and maxRequests bound the compilation, and what one user can
	// fill the store with.
	maxGrants   = 10000
	maxRequests = 20
	// keepRequests is how long a request waits.
	keepRequests = 7 * 24 * time.Hour
)

// checkGrant refuses what no grant can be, and returns the target as it is
// kept.
func (s *snapshot) checkGrant(user, target string, span time.Duration, now time.Time) (string, error) {
	switch {
	case span <= 0:
		return "", problem(KindInvalid, "say for how long: --for 4h", "a grant in the past opens nothing")
	case span > maxGrant:
		return "", problem(KindInvalid, "write a rule: overlayd policy show", "a grant lasts a year at most")
	case len(s.grants) >= maxGrants:
		return "", problem(KindConflict, "revoke some, or write a rule: overlayd policy show", "there are %d grants; more are not kept", len(s.grants))
	case s.standing == nil:
		return "", problem(KindInternal, "", "there is no policy")
	}
	to, err := policy.ParseTarget(target)
	if err == nil {
		err = s.standing.policy.CheckGrant(s.standing.world, policy.Grant{User: user, To: to, Until: now.Add(span)}, now)
	}
	if err != nil {
		return "", termProblem(err)
	}
	return strings.TrimSpace(target), nil // as it was typed: to.String would say which kind of name it is
}

// termProblem makes a Problem of what is wrong with a name or a target.
func termProblem(err error) error {
	p := problem(KindInvalid, "", "%s", err)
	if one, ok := err.(*policy.Problem); ok {
		p.Message, p.Hint = one.Error(), one.Hint
	}
	return p
}

// grant decides what a new grant changes. Grants that are over go with it.
func (s *snapshot) grant(user, target string, span time.Duration, id, by string, now time.Time) (grantRecord, []Record, error) {
	u, err := s.user(user)
	if err != nil {
		return grantRecord{}, nil, err
	}
	if u.Disabled {
		return grantRecord{}, nil, problem(KindConflict, "overlayd users enable "+u.Name, "the user %s is disabled", u.Name)
	}
	if target, err = s.checkGrant(u.Name, target, span, now); err != nil {
		return grantRecord{}, nil, err
	}
	g := grantRecord{ID: id, User: u.ID, Target: target, Until: now.Add(span), By: by, Created: now}
	return g, append(s.overdue(now), putGrant(g)), nil
}

// graceOver is how long a grant that is over is still listed, and compiled: the
// receiving node ended it by itself.
const graceOver = time.Minute

// overdue decides what time alone has ended.
func (s *snapshot) overdue(now time.Time) (changes []Record) {
	for _, g := range s.grantsByID() {
		if now.Sub(g.Until) >= graceOver {
			changes = append(changes, drop(keyGrant+g.ID))
		}
	}
	for _, r := range s.requestsByAge() {
		if now.Sub(r.Created) >= keepRequests {
			changes = append(changes, drop(keyRequest+r.ID))
		}
	}
	for _, e := range s.exposuresByAge() {
		if !e.Until.IsZero() && now.Sub(e.Until) >= graceOver {
			changes = append(changes, drop(keyExposure+e.ID))
		}
	}
	return changes
}

// request decides what asking for access changes.
func (s *snapshot) request(n *nodeRecord, target string, span time.Duration, id string, now time.Time) (requestRecord, []Record, error) {
	u := s.users[n.User]
	if u == nil {
		return requestRecord{}, nil, problem(KindDenied, "ask from a machine of your own", "the node %s is nobody's own machine", n.Name)
	}
	if span == 0 {
		span = DefaultGrant
	}
	target, err := s.checkGrant(u.Name, target, span, now)
	if err != nil {
		return requestRecord{}, nil, err
	}
	waiting := 0
	for _, r := range s.requests {
		if r.User != u.ID {
			continue
		}
		waiting++
		if r.Target == target && r.For == span {
			return *r, nil, nil // asked before
		}
	}
	if waiting >= maxRequests {
		return requestRecord{}, nil, problem(KindConflict, "wait for an answer", "%d requests of %s wait already", waiting, u.Name)
	}
	r := requestRecord{ID: id, User: u.ID, Node: n.Name, Target: target, For: span, Created: now}
	return r, []Record{putRequest(r)}, nil
}

// approveRequest decides what saying yes changes.
func (s *snapshot) approveRequest(id string, span time.Duration, grant, by string, now time.Time) (grantRecord, []Record, error) {
	r, err := s.requestOf(id)
	if err != nil {
		return grantRecord{}, nil, err
	}
	if span == 0 {
		span = r.For
	}
	g, changes, err := s.grant(r.User, r.Target, span, grant, by, now)
	if err != nil {
		return g, nil, err
	}
	return g, append(changes, drop(keyRequest+r.ID)), nil
}

func (s *snapshot) requestOf(id string) (*requestRecord, error) {
	if r := s.requests[id]; r != nil {
		return r, nil
	}
	return nil, problem(KindNotFound, "list them with: overlayd requests", "there is no request %.80q", id)
}

func (s *snapshot) requestsByAge() []*requestRecord {
	return slices.SortedFunc(maps.Values(s.requests), func(a, b *requestRecord) int {
		if c := a.Created.Compare(b.Created); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
}

package coord

import (
	"bytes"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"overlayd/overlay/key"
	"overlayd/overlay/policy"
)

// snapshot is the store's content at one revision, with indexes. It and what it
// points to never change.
type snapshot struct {
	rev     uint64
	network networkRecord
	nodes   map[string]*nodeRecord
	invites map[string]*inviteRecord
	retired map[uint32]time.Time

	byLabel     map[uint32]*nodeRecord
	byName      map[string]*nodeRecord
	byMachine   map[key.MachinePublic]*nodeRecord
	byWireGuard map[key.Public]*nodeRecord
	relays      map[string]*nodeRecord // by id, those that joined

	users       map[string]*userRecord
	groups      map[string]*groupRecord
	policies    map[uint64]*policyRecord
	grants      map[string]*grantRecord
	requests    map[string]*requestRecord
	userByName  map[string]*userRecord
	groupByName map[string]*groupRecord

	sshKeys   map[string]*sshKeyRecord
	logins    map[string]*loginRecord // by user
	exposures map[string]*exposureRecord

	standing *standing // who may reach what; the same as long as nothing of it changed
}

// newSnapshot reads all records of a store.
func newSnapshot(rev uint64, records []Record) (*snapshot, error) {
	empty := &snapshot{
		nodes:       map[string]*nodeRecord{},
		invites:     map[string]*inviteRecord{},
		retired:     map[uint32]time.Time{},
		byLabel:     map[uint32]*nodeRecord{},
		byName:      map[string]*nodeRecord{},
		byMachine:   map[key.MachinePublic]*nodeRecord{},
		byWireGuard: map[key.Public]*nodeRecord{},
		relays:      map[string]*nodeRecord{},
		users:       map[string]*userRecord{},
		groups:      map[string]*groupRecord{},
		policies:    map[uint64]*policyRecord{},
		grants:      map[string]*grantRecord{},
		requests:    map[string]*requestRecord{},
		sshKeys:     map[string]*sshKeyRecord{},
		logins:      map[string]*loginRecord{},
		exposures:   map[string]*exposureRecord{},
	}
	return empty.with(rev, records)
}

// with returns the snapshot after changes.
func (s *snapshot) with(rev uint64, changes []Record) (*snapshot, error) {
	next := &snapshot{
		rev: rev, network: s.network,
		nodes:       maps.Clone(s.nodes),
		invites:     maps.Clone(s.invites),
		retired:     maps.Clone(s.retired),
		byLabel:     maps.Clone(s.byLabel),
		byName:      maps.Clone(s.byName),
		byMachine:   maps.Clone(s.byMachine),
		byWireGuard: maps.Clone(s.byWireGuard),
		relays:      maps.Clone(s.relays),
		users:       maps.Clone(s.users),
		groups:      maps.Clone(s.groups),
		policies:    maps.Clone(s.policies),
		grants:      maps.Clone(s.grants),
		requests:    maps.Clone(s.requests),
		sshKeys:     maps.Clone(s.sshKeys),
		logins:      maps.Clone(s.logins),
		exposures:   maps.Clone(s.exposures),
		standing:    s.standing,
	}
	// What goes makes room first: two nodes may swap a name in one commit.
	for _, r := range changes {
		if id, ok := recordID(r, keyNode); ok {
			next.dropNode(id)
		}
	}
	for _, r := range changes {
		if err := next.apply(r); err != nil {
			return nil, err
		}
	}
	next.indexPeople()
	if next.standing == nil || slices.ContainsFunc(changes, bearsOnAccess) {
		if err := next.stand(); err != nil {
			return nil, err
		}
	}
	return next, nil
}

// indexPeople finds users and groups by name.
func (s *snapshot) indexPeople() {
	s.userByName, s.groupByName = make(map[string]*userRecord, len(s.users)), make(map[string]*groupRecord, len(s.groups))
	for _, u := range s.users {
		s.userByName[u.Name] = u
	}
	for _, g := range s.groups {
		s.groupByName[g.Name] = g
	}
}

func (s *snapshot) dropNode(id string) {
	if n := s.nodes[id]; n != nil {
		delete(s.nodes, id)
		delete(s.byLabel, n.Label)
		delete(s.byName, n.Name)
		if s.byMachine[n.Machine] == n {
			delete(s.byMachine, n.Machine)
		}
		if s.byWireGuard[n.WireGuard] == n {
			delete(s.byWireGuard, n.WireGuard)
		}
		delete(s.relays, id)
	}
}

// indexNode finds a node by all that is its own.
func (s *snapshot) indexNode(n *nodeRecord) {
	s.nodes[n.ID], s.byLabel[n.Label], s.byName[n.Name] = n, n, n
	if !n.Machine.IsZero() {
		s.byMachine[n.Machine] = n
	}
	if !n.WireGuard.IsZero() {
		s.byWireGuard[n.WireGuard] = n
	}
	if n.Relay != nil {
		s.relays[n.ID] = n
	}
}

func (s *snapshot) apply(r Record) error {
	if id, ok := recordID(r, keyNode); ok {
		if r.Value == nil {
			return nil // dropped already
		}
		n, err := decode[nodeRecord](r)
		if err != nil {
			return err
		}
		if other := s.byLabel[n.Label]; other != nil || id != n.ID || n.Label == 0 {
			return fmt.Errorf("record %s: its label %d or id is not its own", r.Key, n.Label)
		}
		s.indexNode(n)
		return nil
	}
	if id, ok := recordID(r, keyInvite); ok {
		if r.Value == nil {
			delete(s.invites, id)
			return nil
		}
		i, err := decode[inviteRecord](r)
		if err == nil {
			s.invites[id] = i
		}
		return err
	}
	if id, ok := recordID(r, keyRetired); ok {
		label, err := strconv.ParseUint(id, 10, 32)
		if err != nil {
			return fmt.Errorf("record %s: %w", r.Key, err)
		}
		if r.Value == nil {
			delete(s.retired, uint32(label))
			return nil
		}
		t, err := decode[retiredRecord](r)
		if err == nil {
			s.retired[uint32(label)] = t.Removed
		}
		return err
	}
	if known, err := s.applyPeople(r); known {
		return err
	}
	if r.Key == keyNetwork && r.Value != nil {
		n, err := decode[networkRecord](r)
		if err == nil {
			s.network = *n
		}
		return err
	}
	return fmt.Errorf("record %s: of a kind that this version does not know", r.Key)
}

// applyPeople is apply for the records of users and of what they may reach.
func (s *snapshot) applyPeople(r Record) (known bool, err error) {
	if id, ok := recordID(r, keyUser); ok {
		return true, keep(s.users, id, r)
	}
	if id, ok := recordID(r, keyGroup); ok {
		return true, keep(s.groups, id, r)
	}
	if id, ok := recordID(r, keyGrant); ok {
		return true, keep(s.grants, id, r)
	}
	if id, ok := recordID(r, keyRequest); ok {
		return true, keep(s.requests, id, r)
	}
	if id, ok := recordID(r, keySSHKey); ok {
		return true, keep(s.sshKeys, id, r)
	}
	if id, ok := recordID(r, keyLogin); ok {
		return true, keep(s.logins, id, r)
	}
	if id, ok := recordID(r, keyExposure); ok {
		return true, keep(s.exposures, id, r)
	}
	if id, ok := recordID(r, keyPolicy); ok {
		v, err := strconv.ParseUint(id, 10, 64)
		if err != nil {
			return true, fmt.Errorf("record %s: %w", r.Key, err)
		}
		return true, keep(s.policies, v, r)
	}
	return false, nil
}

// keep puts a record's value into a map, or takes it out.
func keep[K comparable, V any](m map[K]*V, k K, r Record) error {
	if r.Value == nil {
		delete(m, k)
		return nil
	}
	v, err := decode[V](r)
	if err == nil {
		m[k] = v
	}
	return err
}

// occupancy returns what an allocation has to respect now.
func (s *snapshot) occupancy(now time.Time) occupancy {
	o := occupancy{used: make(map[uint32]string, len(s.nodes)), promised: map[uint32]string{}, retired: s.retired}
	for l, n := range s.byLabel {
		o.used[l] = n.Name
	}
	for id, i := range s.invites {
		if i.Address.IsValid() && i.state(now) == InviteOpen {
			o.promised[labelOf(s.network.Overlay, i.Address)] = id
		}
	}
	return o
}

// node finds a node by id, name or address.
func (s *snapshot) node(ref string) (*nodeRecord, error) {
	if n := s.nodes[ref]; n != nil {
		return n, nil
	}
	if n := s.byName[ref]; n != nil {
		return n, nil
	}
	if a, err := netip.ParseAddr(ref); err == nil && s.network.Overlay.Contains(a) {
		if n := s.byLabel[labelOf(s.network.Overlay, a)]; n != nil {
			return n, nil
		}
	}
	return nil, problem(KindNotFound, policy.DidYouMean(ref, slices.Sorted(maps.Keys(s.byName)), "list them with: overlayd nodes"), "there is no node %.80q", ref)
}

// nodesByLabel returns all nodes in the order of their labels.
func (s *snapshot) nodesByLabel() []*nodeRecord {
	return slices.SortedFunc(maps.Values(s.nodes), func(a, b *nodeRecord) int { return int(a.Label) - int(b.Label) })
}

// changedLabels returns the labels whose node is not the same in both, those who
// carry one that came or went, and the nodes that are gone.
func changedLabels(old, next *snapshot) (labels []uint32, gone []*nodeRecord) {
	carrier := func(n *nodeRecord) {
		if host := next.nodes[n.Host]; host != nil {
			labels = append(labels, host.Label)
		}
	}
	for id, n := range next.nodes {
		o := old.nodes[id]
		if o != n {
			labels = append(labels, n.Label)
		}
		if o == nil {
			carrier(n)
		}
	}
	for id, o := range old.nodes {
		if next.nodes[id] == nil {
			labels = append(labels, o.Label)
			gone = append(gone, o)
			carrier(o)
		}
	}
	return labels, gone
}

// keepSame takes over from an older snapshot the nodes that did not change, so
// that comparing pointers finds those that did.
func (s *snapshot) keepSame(old *snapshot) {
	for id, n := range s.nodes {
		if o := old.nodes[id]; o != nil && bytes.Equal(putNode(*o).Value, putNode(*n).Value) {
			s.indexNode(o)
		}
	}
}

package coord

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"overlayd/overlay/key"
)

// The store's keys. A record's value is JSON.
const (
	keyNetwork = "network"
	keyNode    = "node/"    // and the node's id
	keyInvite  = "invite/"  // and the invite's id
	keyRetired = "retired/" // and the label of a removed node
	keyUser    = "user/"    // and the user's id
	keyGroup   = "group/"   // and the group's id
	keyPolicy  = "policy/"  // and the version, in eight digits
	keyGrant   = "grant/"   // and the grant's id
	keyRequest = "request/" // and the request's id

	keySSHKey   = "sshkey/"   // and the key's id, its hash
	keyLogin    = "login/"    // and the user's id
	keyExposure = "exposure/" // and the exposure's id
)

// networkSchema says what a store has: 0 has no users and no policy.
const networkSchema = 1

type networkRecord struct {
	ID      NetworkID    `json:"id"`
	Overlay netip.Prefix `json:"overlay"`
	Created time.Time    `json:"created"`
	Schema  int          `json:"schema,omitempty"`
	Signer  []byte       `json:"signer,omitempty"` // the Ed25519 seed that rolls are signed with

	KeyTTL time.Duration `json:"key_ttl,omitempty"` // 0: DefaultKeyTTL
}

func (n *networkRecord) signer() (key.Machine, error) { return key.ParseMachine(n.Signer) }

type nodeRecord struct {
	ID         string            `json:"id"`
	Name       string            `json:"name"`
	Label      uint32            `json:"label"` // for life
	Role       Role              `json:"role"`
	Machine    key.MachinePublic `json:"machine"`
	WireGuard  key.Public        `json:"wireguard"`
	Advertised []netip.Prefix    `json:"advertised,omitempty"`
	Approved   []netip.Prefix    `json:"approved,omitempty"` // also of what is not advertised now
	Joined     time.Time         `json:"joined"`
	Invite     string            `json:"invite"`          // the id of the one it came with
	Relay      *relayRecord      `json:"relay,omitempty"` // of a relay that joined; nil: none, or the coordinator's own

	User     string    `json:"user,omitempty"` // its id; empty: nobody's
	Tags     []string  `json:"tags,omitempty"` // in order
	Pending  bool      `json:"pending,omitempty"`
	Disabled bool      `json:"disabled,omitempty"`
	Barred   time.Time `json:"barred,omitzero"` // when its passes became worthless; zero: never

	Expires time.Time     `json:"expires,omitzero"` // its key; zero: never
	Expired bool          `json:"expired,omitempty"`
	Renewed time.Time     `json:"renewed,omitzero"`  // when Expires was last moved
	Keyed   time.Time     `json:"keyed,omitzero"`    // since when it has its WireGuard key; zero: since it joined
	KeyTTL  time.Duration `json:"key_ttl,omitempty"` // 0: the network's

	Host string `json:"host,omitempty"` // the id of the node that carries it; empty: it stands by itself, and has a machine key
	Seat bool   `json:"seat,omitempty"` // carried, and without a WireGuard key
}

// inviteRecord keeps of the secret only its hash.
type inviteRecord struct {
	ID      string         `json:"id"`
	Hash    []byte         `json:"hash"` // SHA-256 of the secret
	Name    string         `json:"name,omitempty"`
	Role    Role           `json:"role"`
	Address netip.Addr     `json:"address"`
	Routes  []netip.Prefix `json:"routes,omitempty"`
	Uses    int            `json:"uses"`
	Used    int            `json:"used"`
	Created time.Time      `json:"created"`
	Expires time.Time      `json:"expires"`
	Revoked bool           `json:"revoked,omitempty"`

	User          string        `json:"user,omitempty"` // the id of whom it is for
	NeedsApproval bool          `json:"needs_approval,omitempty"`
	KeyTTL        time.Duration `json:"key_ttl,omitempty"` // of the nodes' keys; 0: the network's
}

// admits compares in constant time.
func (i *inviteRecord) admits(s key.Secret) bool {
	h := s.Hash()
	return len(i.Hash) == sha256.Size && subtle.ConstantTimeCompare(i.Hash, h[:]) == 1
}

func (i *inviteRecord) state(now time.Time) InviteState {
	switch {
	case i.Revoked:
		return InviteRevoked
	case i.Used >= i.Uses:
		return InviteUsed
	case !now.Before(i.Expires):
		return InviteExpired
	}
	return InviteOpen
}

// retiredRecord remembers a label whose node is gone.
type retiredRecord struct {
	Label   uint32    `json:"label"`
	Removed time.Time `json:"removed"`
}

func retiredKey(label uint32) string { return keyRetired + strconv.FormatUint(uint64(label), 10) }

func put(key string, v any) Record {
	b, err := json.Marshal(v)
	if err != nil {
		panic("internal error: a record does not marshal: " + err.Error())
	}
	return Record{Key: key, Value: b}
}

func putNode(n nodeRecord) Record     { return put(keyNode+n.ID, n) }
func putInvite(i inviteRecord) Record { return put(keyInvite+i.ID, i) }
func drop(key string) Record          { return Record{Key: key} }

// decode reads a record's value into one of the types above.
func decode[T any](r Record) (*T, error) {
	v := new(T)
	if err := json.Unmarshal(r.Value, v); err != nil {
		return nil, fmt.Errorf("record %s: %w", r.Key, err)
	}
	return v, nil
}

// recordID returns what follows the prefix in a record's key.
func recordID(r Record, prefix string) (string, bool) { return strings.CutPrefix(r.Key, prefix) }

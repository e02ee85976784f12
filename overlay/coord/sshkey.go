package coord

import (
	"bytes"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

// sshKeyRecord is a public key that proves a user to the jump host. Its id is
// made from the key, so a key belongs to one user.
type sshKeyRecord struct {
	ID      string    `json:"id"`
	User    string    `json:"user"` // its id
	Key     []byte    `json:"key"`  // as SSH sends it (RFC 4253 section 6.6)
	Comment string    `json:"comment,omitempty"`
	Created time.Time `json:"created"`
}

func putSSHKey(k sshKeyRecord) Record { return put(keySSHKey+k.ID, k) }

// SSHKey is a public key of a user, as listed.
type SSHKey struct {
	User        string
	Fingerprint string // SHA256:..., as ssh-keygen -l shows it
	Type        string // as in ssh-ed25519
	Comment     string
	Created     time.Time
}

const (
	// maxSSHKey holds the longest key that is taken, RSA's of 16,384 bits, in
	// base64 with its comment.
	maxSSHKey = 8 << 10
	// minRSA is what has to be proved at least: shorter ones can be broken.
	minRSA = 2048
	// maxSSHKeys is how many keys one user may have.
	maxSSHKeys = 32
	// maxComment is how much of a key's comment is kept.
	maxComment = 128
)

// sshKeyTypes are the keys that are taken. Certificates are not: nobody here
// vouches for those who sign them.
var sshKeyTypes = []string{
	ssh.KeyAlgoED25519, ssh.KeyAlgoSKED25519, ssh.KeyAlgoSKECDSA256,
	ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521, ssh.KeyAlgoRSA,
}

// ParsedKey is a public key that was read.
type ParsedKey struct {
	Key     ssh.PublicKey
	Comment string
}

// ParseSSHKey reads one public key, a line as in authorized_keys or a file that
// ssh-keygen made. What it was given is not in its errors: it may be a secret.
func ParseSSHKey(text string) (ParsedKey, error) {
	const hint = "give the public key, the file that ends in .pub"
	text = strings.TrimSpace(text)
	switch {
	case strings.Contains(text, "PRIVATE KEY"):
		return ParsedKey{}, problem(KindInvalid, hint+"; this one is to stay where it is", "this is a private key")
	case text == "":
		return ParsedKey{}, problem(KindInvalid, hint, "there is no key in it")
	case len(text) > maxSSHKey:
		return ParsedKey{}, problem(KindInvalid, hint, "it is longer than any public key")
	}
	k, comment, options, rest, err := ssh.ParseAuthorizedKey([]byte(text))
	switch {
	case err != nil:
		return ParsedKey{}, problem(KindInvalid, hint, "this is not a public key of SSH")
	case len(options) > 0:
		return ParsedKey{}, problem(KindInvalid, "leave out what stands before the type of the key", "a key has no options here: it opens no shell")
	case len(bytes.TrimSpace(rest)) > 0:
		return ParsedKey{}, problem(KindInvalid, "add them one by one", "there is more than one key in it")
	case !slices.Contains(sshKeyTypes, k.Type()):
		return ParsedKey{}, problem(KindInvalid, "make a key with: ssh-keygen -t ed25519", "keys of the type %.40s are not taken", k.Type())
	}
	if c, ok := k.(ssh.CryptoPublicKey); ok {
		if r, ok := c.CryptoPublicKey().(*rsa.PublicKey); ok && r.N.BitLen() < minRSA {
			return ParsedKey{}, problem(KindInvalid, "make a key with: ssh-keygen -t ed25519", "an RSA key of %d bits is too short; %d are the fewest", r.N.BitLen(), minRSA)
		}
	}
	return ParsedKey{Key: k, Comment: plainText(comment, maxComment)}, nil
}

// plainText makes what somebody wrote fit for a terminal.
func plainText(s string, most int) string {
	s = strings.ToValidUTF8(strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, s), "?")
	for len(s) > most {
		s = strings.ToValidUTF8(s[:most], "")
	}
	return s
}

// sshKeyID names a key by its SHA-256.
func sshKeyID(blob []byte) string {
	sum := sha256.Sum256(blob)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func (k *sshKeyRecord) info(s *snapshot) SSHKey {
	i := SSHKey{Comment: k.Comment, Created: k.Created}
	if u := s.users[k.User]; u != nil {
		i.User = u.Name
	}
	if pub, err := ssh.ParsePublicKey(k.Key); err == nil { // else the record is damaged, and proves nobody
		i.Fingerprint, i.Type = ssh.FingerprintSHA256(pub), pub.Type()
	}
	return i
}

// addSSHKey decides what a new key changes.
func (s *snapshot) addSSHKey(user, text string, now time.Time) (sshKeyRecord, []Record, error) {
	u, err := s.user(user)
	if err != nil {
		return sshKeyRecord{}, nil, err
	}
	p, err := ParseSSHKey(text)
	if err != nil {
		return sshKeyRecord{}, nil, err
	}
	k := sshKeyRecord{User: u.ID, Key: p.Key.Marshal(), Comment: p.Comment, Created: now}
	k.ID = sshKeyID(k.Key)
	if old := s.sshKeys[k.ID]; old != nil {
		if old.User == u.ID {
			return *old, nil, nil
		}
		return k, nil, problem(KindConflict, "make another key, or take it from there: overlayd users remove-key",
			"this key belongs to the user %s", old.info(s).User)
	}
	if len(s.sshKeysOf(u.ID)) >= maxSSHKeys {
		return k, nil, problem(KindConflict, "remove some: overlayd users keys "+u.Name, "%s has %d keys already", u.Name, maxSSHKeys)
	}
	return k, []Record{putSSHKey(k)}, nil
}

// removeSSHKey decides what taking a key away changes. It is named by its
// fingerprint, its comment or itself.
func (s *snapshot) removeSSHKey(user, ref string) (sshKeyRecord, []Record, error) {
	u, err := s.user(user)
	if err != nil {
		return sshKeyRecord{}, nil, err
	}
	id := ""
	if p, err := ParseSSHKey(ref); err == nil {
		id = sshKeyID(p.Key.Marshal())
	}
	var found []*sshKeyRecord
	for _, k := range s.sshKeysOf(u.ID) {
		if k.ID == id || k.info(s).Fingerprint == ref || k.Comment == ref && ref != "" {
			found = append(found, k)
		}
	}
	const hint = "list them with: overlayd users keys "
	switch len(found) {
	case 1:
		return *found[0], []Record{drop(keySSHKey + found[0].ID)}, nil
	case 0:
		return sshKeyRecord{}, nil, problem(KindNotFound, hint+u.Name, "%s has no such key", u.Name)
	}
	return sshKeyRecord{}, nil, problem(KindConflict, "name it by its fingerprint; "+hint+u.Name, "%s has %d keys of that name", u.Name, len(found))
}

// sshKeysOf returns a user's keys, the oldest first; an empty id is everybody's.
func (s *snapshot) sshKeysOf(user string) (list []*sshKeyRecord) {
	for _, k := range s.sshKeys {
		if user == "" || k.User == user {
			list = append(list, k)
		}
	}
	slices.SortFunc(list, func(a, b *sshKeyRecord) int {
		if c := a.Created.Compare(b.Created); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return list
}

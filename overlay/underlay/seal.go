package underlay

import (
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"fmt"

	"golang.org/x/crypto/chacha20poly1305"

	"overlayd/overlay/key"
	"overlayd/overlay/relay"
)

// sealInfo binds the key to its use (RFC 5869, section 3.2).
const sealInfo = "overlayd peer probe v1"

// seal closes and opens the probes between two nodes:
//
//	0x09 | label 3 | nonce 24 | box (XChaCha20-Poly1305)
//
// Its key comes from both WireGuard keys. The sender's public key is
// authenticated along, so that no probe can be turned back to its sender.
type seal struct {
	aead      cipher.AEAD
	own, peer []byte // public keys
}

// sealedHeader is what stands before the box.
const sealedHeader = headerSize + chacha20poly1305.NonceSizeX

// sealedProbe is how much longer a datagram is than the probe in it.
const sealedProbe = sealedHeader + chacha20poly1305.Overhead

// newSeal fails for peer keys with which there is no secret.
func newSeal(own key.Private, peer key.Public) (*seal, error) {
	shared, err := own.Shared(peer)
	if err != nil {
		return nil, fmt.Errorf("share a secret with %s: %w", peer.Short(), err)
	}
	k, err := hkdf.Key(sha256.New, shared.Expose(), nil, sealInfo, chacha20poly1305.KeySize)
	if err != nil {
		return nil, err
	}
	aead, err := chacha20poly1305.NewX(k)
	if err != nil {
		return nil, err
	}
	return &seal{aead: aead, own: own.Public().Bytes(), peer: peer.Bytes()}, nil
}

// close returns a datagram that holds m.
func (s *seal) close(label relay.Label, m probe) []byte {
	b := make([]byte, sealedHeader, max(512, sealedProbe+m.fill))
	b[0] = typeProbe
	stamp(b, label)
	rand.Read(b[headerSize:])
	return s.aead.Seal(b, b[headerSize:sealedHeader], m.Append(nil), s.own)
}

// open reads what the peer closed. The label is not the peer's word: relays
// write it.
func (s *seal) open(b []byte) (probe, error) {
	if len(b) < sealedHeader {
		return probe{}, errProbe
	}
	inside, err := s.aead.Open(nil, b[headerSize:sealedHeader], b[sealedHeader:], s.peer)
	if err != nil {
		return probe{}, errProbe
	}
	return parseProbe(inside)
}

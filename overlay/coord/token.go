package coord

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"overlayd/overlay/key"
)

const (
	// tokenLife is how long a token is good for, and the most a coordinator
	// takes.
	tokenLife = 5 * time.Minute
	// tokenLeeway is how far the two clocks may be apart on top.
	tokenLeeway = 2 * time.Minute
	// maxToken in bytes: ours have about 330, more with a long host name.
	maxToken = 2048

	tokenIssuer = "overlayd node"
)

// audience names a coordinator in a token, so that a token for one is useless
// at another: by its TLS key, or where ordinary certificates are used, by its
// address.
func audience(pin key.Pin, endpoint string) string {
	if pin.IsZero() {
		return strings.ToLower(endpoint)
	}
	return pin.String()
}

// signToken makes the token that a machine shows to a coordinator.
func signToken(m key.Machine, aud string, now time.Time) (string, error) {
	return jwt.NewWithClaims(jwt.SigningMethodEdDSA, jwt.RegisteredClaims{
		Issuer:    tokenIssuer,
		Subject:   m.Public().String(),
		Audience:  jwt.ClaimStrings{aud},
		IssuedAt:  jwt.NewNumericDate(now),
		ExpiresAt: jwt.NewNumericDate(now.Add(tokenLife)),
	}).SignedString(m.Signer())
}

// verifyToken returns the machine that signed a token for one of the
// audiences. Whether that machine is a member is another question.
func verifyToken(token string, audiences []string, now time.Time) (key.MachinePublic, error) {
	if len(token) > maxToken {
		return key.MachinePublic{}, badToken("it is too long")
	}
	parser := jwt.NewParser(
		jwt.WithValidMethods([]string{jwt.SigningMethodEdDSA.Alg()}),
		jwt.WithTimeFunc(func() time.Time { return now }),
		jwt.WithLeeway(tokenLeeway),
		jwt.WithExpirationRequired(),
		jwt.WithIssuedAt(),
		jwt.WithIssuer(tokenIssuer),
		jwt.WithAudience(audiences...),
		jwt.WithStrictDecoding(),
	)
	var (
		claims  jwt.RegisteredClaims
		machine key.MachinePublic
	)
	_, err := parser.ParseWithClaims(token, &claims, func(*jwt.Token) (any, error) {
		var err error
		if machine, err = key.ParseMachinePublic(claims.Subject); err != nil {
			return nil, errors.New("its subject is not a machine key")
		}
		return machine.Ed25519(), nil
	})
	switch {
	case errors.Is(err, jwt.ErrTokenSignatureInvalid), errors.Is(err, jwt.ErrTokenUnverifiable), errors.Is(err, jwt.ErrTokenMalformed):
		return key.MachinePublic{}, badToken("it is malformed or not signed by its machine")
	case errors.Is(err, jwt.ErrTokenInvalidAudience):
		return key.MachinePublic{}, badToken("it is for another coordinator")
	case claims.IssuedAt == nil || claims.ExpiresAt == nil:
		return key.MachinePublic{}, badToken("it has no time")
	case errors.Is(err, jwt.ErrTokenExpired), errors.Is(err, jwt.ErrTokenUsedBeforeIssued):
		return key.MachinePublic{}, clockSkew(claims.IssuedAt.Time, now)
	case err != nil:
		return key.MachinePublic{}, badToken("its claims are wrong")
	case claims.ExpiresAt.Sub(claims.IssuedAt.Time) > tokenLife:
		return key.MachinePublic{}, badToken("it lives too long")
	}
	return machine, nil
}

func badToken(why string) error {
	return problem(KindInvalid, "run the same version of overlayd here and on the relay", "the coordinator refused this machine's token: %s", why)
}

// clockSkew says whose clock is where. It is not final: the clock may be set
// any moment.
func clockSkew(theirs, ours time.Time) error {
	by, word := theirs.Sub(ours), "ahead of"
	if by < 0 {
		by, word = -by, "behind"
	}
	return problem(KindInvalid, "set the clock: timedatectl set-ntp true",
		"this machine's clock is %s %s the coordinator's", by.Round(time.Second), word)
}

const bearer = "Bearer "

func bearerHeader(token string) string { return bearer + token }

// bearerToken takes the token out of an Authorization header.
func bearerToken(header string) (string, error) {
	t, ok := strings.CutPrefix(header, bearer)
	if !ok || t == "" {
		return "", fmt.Errorf("read token: %w", badToken("there is none"))
	}
	return t, nil
}

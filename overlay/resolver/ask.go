package resolver

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// askAgain is when a question is sent again if no answer has come: after each of
// these. The overlay loses little, and a new path takes a moment.
var askAgain = []time.Duration{300 * time.Millisecond, 700 * time.Millisecond, time.Second}

// ErrNoName says that the LAN knows no such name, or none that it tells.
var ErrNoName = errors.New("the lan knows no such name")

// Ask asks the gateway at the other end of a UDP socket for the addresses of a
// name, of IPv4 or else of IPv6. It returns by the end of ctx.
func Ask(ctx context.Context, c net.Conn, name string, v6 bool) ([]netip.Addr, error) {
	kind := dnsmessage.TypeA
	if v6 {
		kind = dnsmessage.TypeAAAA
	}
	name = strings.ToLower(strings.TrimSuffix(name, ".")) + "."
	if !hostname(name) {
		return nil, ErrNoName
	}
	a, err := ask(ctx, c, question{uint16(rand.Uint32()), name, kind})
	return a.addrs, err
}

// Domains asks for the domains of the LAN.
func Domains(ctx context.Context, c net.Conn) ([]string, error) {
	a, err := ask(ctx, c, question{uint16(rand.Uint32()), domainsName, dnsmessage.TypeTXT})
	return a.domains, err
}

func ask(ctx context.Context, c net.Conn, q question) (answer, error) {
	query, err := appendQuery(nil, q)
	if err != nil {
		return answer{}, err
	}
	stop := context.AfterFunc(ctx, func() { c.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, longest)
	for i := 0; ; i++ {
		if _, err := c.Write(query); err != nil {
			return answer{}, fmt.Errorf("ask for %s: %w", q.name, err)
		}
		wait := askAgain[min(i, len(askAgain)-1)]
		c.SetReadDeadline(time.Now().Add(wait))
		a, err := hear(ctx, c, buf, q)
		var late net.Error
		if ctx.Err() != nil {
			return answer{}, fmt.Errorf("ask for %s: %w", q.name, ctx.Err())
		}
		if errors.As(err, &late) && late.Timeout() {
			continue
		}
		if err != nil {
			return answer{}, fmt.Errorf("ask for %s: %w", q.name, err)
		}
		return a, a.err(q)
	}
}

// hear reads until an answer to the question comes.
func hear(ctx context.Context, c net.Conn, buf []byte, q question) (answer, error) {
	for {
		n, err := c.Read(buf)
		if err != nil {
			return answer{}, err
		}
		if a, err := parseAnswer(buf[:n], q); err == nil {
			return a, nil
		}
		if ctx.Err() != nil {
			return answer{}, ctx.Err()
		}
	}
}

// err is what an answer says went wrong.
func (a answer) err(q question) error {
	switch {
	case a.code == dnsmessage.RCodeNameError:
		return ErrNoName
	case a.code != dnsmessage.RCodeSuccess:
		return fmt.Errorf("ask for %s: the gateway's resolver fails", q.name)
	case q.kind != dnsmessage.TypeTXT && len(a.addrs) == 0:
		return ErrNoName
	}
	return nil
}

package resolver

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/net/publicsuffix"
)

const (
	// Port is where gateways answer, over UDP. It is none of DNS's own, which a
	// gateway that is a router has in use.
	Port = 5053
	// longest is what a message has at most: an answer of mostAddrs addresses of
	// IPv6 and the longest name, or the domains.
	longest = 1232
	// mostAddrs is how many addresses are told of a name.
	mostAddrs = 16
	// mostDomains is how many domains of a LAN are told.
	mostDomains = 8
	// domainsName is asked for with TXT for the LAN's domains. No LAN has it: it
	// ends in a name that is reserved (RFC 6761).
	domainsName = "_domains.overlayd.invalid."
	// ttl is for how long an answer holds, in seconds: the host's resolver does not
	// tell.
	ttl = 30
)

// question is what is asked.
type question struct {
	id   uint16
	name string // with the root's dot, in lower case
	kind dnsmessage.Type
}

var errMalformed = errors.New("the message is malformed")

// parseQuestion reads a query with its one question.
func parseQuestion(b []byte) (question, error) {
	var p dnsmessage.Parser
	h, err := p.Start(b)
	if err != nil || h.Response || h.OpCode != 0 {
		return question{}, errMalformed
	}
	q, err := p.Question()
	if err != nil || q.Class != dnsmessage.ClassINET {
		return question{}, errMalformed
	}
	if _, err := p.Question(); !errors.Is(err, dnsmessage.ErrSectionDone) {
		return question{}, errMalformed
	}
	return question{h.ID, strings.ToLower(q.Name.String()), q.Type}, nil
}

// hostname reports whether a name, with its dot, is one that a host can have. An
// underscore is not allowed and often met.
func hostname(name string) bool {
	plain, ok := strings.CutSuffix(name, ".")
	if !ok || plain == "" || len(plain) > 253 {
		return false
	}
	for label := range strings.SplitSeq(plain, ".") {
		if label == "" || len(label) > 63 || strings.HasPrefix(label, "-") {
			return false
		}
		for _, c := range []byte(label) {
			if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_') {
				return false
			}
		}
	}
	return true
}

// answer is what is said to a question.
type answer struct {
	code    dnsmessage.RCode
	addrs   []netip.Addr
	domains []string
}

// appendQuery writes a question.
func appendQuery(b []byte, q question) ([]byte, error) { return appendMessage(b, q, nil) }

// appendMessage writes a question and, where there is one, the answer.
func appendMessage(b []byte, q question, a *answer) ([]byte, error) {
	name, err := dnsmessage.NewName(q.name)
	if err != nil {
		return nil, fmt.Errorf("write question: %w", err)
	}
	h := dnsmessage.Header{ID: q.id, RecursionDesired: true}
	if a != nil {
		h.Response, h.RecursionAvailable, h.RCode = true, true, a.code
	}
	w := dnsmessage.NewBuilder(b, h)
	w.EnableCompression()
	err = errors.Join(w.StartQuestions(), w.Question(dnsmessage.Question{Name: name, Type: q.kind, Class: dnsmessage.ClassINET}))
	if a != nil {
		err = errors.Join(err, w.StartAnswers(), a.records(&w, name))
	}
	if err != nil {
		return nil, fmt.Errorf("write message: %w", err)
	}
	return w.Finish()
}

func (a *answer) records(w *dnsmessage.Builder, name dnsmessage.Name) error {
	var errs []error
	head := dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET, TTL: ttl}
	for _, at := range a.addrs[:min(len(a.addrs), mostAddrs)] {
		if at.Is4() {
			errs = append(errs, w.AResource(head, dnsmessage.AResource{A: at.As4()}))
		} else {
			errs = append(errs, w.AAAAResource(head, dnsmessage.AAAAResource{AAAA: at.As16()}))
		}
	}
	if len(a.domains) > 0 {
		errs = append(errs, w.TXTResource(head, dnsmessage.TXTResource{TXT: a.domains[:min(len(a.domains), mostDomains)]}))
	}
	return errors.Join(errs...)
}

// parseAnswer reads the answer to a question. Records about other names are not
// looked at.
func parseAnswer(b []byte, q question) (answer, error) {
	var p dnsmessage.Parser
	h, err := p.Start(b)
	if err != nil || !h.Response || h.ID != q.id {
		return answer{}, errMalformed
	}
	asked, err := p.Question()
	if err != nil || !strings.EqualFold(asked.Name.String(), q.name) || asked.Type != q.kind {
		return answer{}, errMalformed
	}
	if err := p.SkipAllQuestions(); err != nil {
		return answer{}, errMalformed
	}
	a := answer{code: h.RCode}
	for {
		err := a.parseRecord(&p, q)
		if errors.Is(err, dnsmessage.ErrSectionDone) {
			return a, nil
		}
		if err != nil {
			return answer{}, errMalformed
		}
	}
}

func (a *answer) parseRecord(p *dnsmessage.Parser, q question) error {
	h, err := p.AnswerHeader()
	if err != nil {
		return err
	}
	if h.Type != q.kind || h.Class != dnsmessage.ClassINET || !strings.EqualFold(h.Name.String(), q.name) {
		return p.SkipAnswer()
	}
	switch h.Type {
	case dnsmessage.TypeA:
		r, err := p.AResource()
		if err == nil && len(a.addrs) < mostAddrs {
			a.addrs = append(a.addrs, netip.AddrFrom4(r.A))
		}
		return err
	case dnsmessage.TypeAAAA:
		r, err := p.AAAAResource()
		if at := netip.AddrFrom16(r.AAAA); err == nil && len(a.addrs) < mostAddrs && !at.Is4In6() {
			a.addrs = append(a.addrs, at)
		}
		return err
	case dnsmessage.TypeTXT:
		r, err := p.TXTResource()
		if err == nil {
			a.addDomains(r.TXT)
		}
		return err
	}
	return p.SkipAnswer()
}

// addDomains takes what is a domain's name.
func (a *answer) addDomains(words []string) {
	for _, w := range words {
		w = strings.ToLower(strings.Trim(w, "."))
		if hostname(w+".") && ofOne(w) && len(a.domains) < mostDomains {
			a.domains = append(a.domains, w)
		}
	}
}

// ofOne reports whether a domain may be one LAN's own: not the whole of com, or of
// co.uk, and not this machine. What lies in a LAN's domain is asked for there, so a
// gateway that claims too much would be asked for the world's names.
func ofOne(domain string) bool {
	suffix, public := publicsuffix.PublicSuffix(domain)
	return !(public && suffix == domain) && domain != "localhost" && !strings.HasSuffix(domain, ".localhost")
}

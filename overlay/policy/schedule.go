package policy

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
	_ "time/tzdata" // a gateway that lacks a zone's table would open at the wrong hour
)

// Schedule says when a rule holds: on some days of the week, in some hours of
// the day, not before a time, until a time. The zero value is always.
type Schedule struct {
	Days      []time.Weekday // in order from Sunday; nil: every day
	Hours     []Hours        // in order; nil: the whole day
	Zone      string         // of Days and Hours, as the zone database names it; "" is UTC
	NotBefore time.Time      // zero: no beginning
	Until     time.Time      // the first moment it does not hold; zero: no end

	loc *time.Location // of Zone; UTC where nil
}

// Hours is a part of a day in minutes from midnight. One that ends before it
// begins goes on into the next day, and belongs to the day on which it began.
type Hours struct{ From, To int }

// minutesOfDay is the end of a day; hours may end there.
const minutesOfDay = 24 * 60

func (h Hours) String() string {
	return fmt.Sprintf("%02d:%02d-%02d:%02d", h.From/60, h.From%60, h.To/60, h.To%60)
}

// Always reports whether the schedule leaves nothing out.
func (s Schedule) Always() bool {
	return len(s.Days) == 0 && len(s.Hours) == 0 && s.NotBefore.IsZero() && s.Until.IsZero()
}

// Active reports whether the schedule holds at that time, and until when this
// answer is good at least; the zero time means for ever.
func (s *Schedule) Active(at time.Time) (on bool, until time.Time) {
	if s == nil {
		return true, time.Time{}
	}
	if !s.Until.IsZero() && !at.Before(s.Until) {
		return false, time.Time{}
	}
	if at.Before(s.NotBefore) {
		return false, s.NotBefore
	}
	on, until = s.weekly(at)
	if !s.Until.IsZero() && (until.IsZero() || s.Until.Before(until)) {
		until = s.Until
	}
	return on, until
}

// weekly looks at days and hours only. Every window that can matter begins
// between yesterday and a week from now.
func (s *Schedule) weekly(at time.Time) (on bool, until time.Time) {
	if len(s.Days) == 0 && len(s.Hours) == 0 {
		return true, time.Time{}
	}
	loc := s.loc
	if loc == nil {
		loc = time.UTC
	}
	hours := s.Hours
	if len(hours) == 0 {
		hours = []Hours{{0, minutesOfDay}}
	}
	local := at.In(loc)
	for day := -1; day <= 8; day++ {
		midnight := time.Date(local.Year(), local.Month(), local.Day()+day, 0, 0, 0, 0, loc)
		if len(s.Days) > 0 && !slices.Contains(s.Days, midnight.Weekday()) {
			continue
		}
		for _, h := range hours {
			to := h.To
			if to <= h.From {
				to += minutesOfDay
			}
			begin := time.Date(local.Year(), local.Month(), local.Day()+day, 0, h.From, 0, 0, loc)
			end := time.Date(local.Year(), local.Month(), local.Day()+day, 0, to, 0, 0, loc)
			on = on || !at.Before(begin) && at.Before(end)
			for _, edge := range []time.Time{begin, end} {
				if edge.After(at) && (until.IsZero() || edge.Before(until)) {
					until = edge
				}
			}
		}
	}
	return on, until
}

// dayNames are the days as a policy writes them.
var dayNames = []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

// String returns the schedule in words of the file format.
func (s Schedule) String() string {
	parts := s.parts()
	words := make([]string, 0, len(parts))
	for _, p := range parts {
		words = append(words, p.key+" "+strings.Join(p.values, ","))
	}
	return strings.Join(words, ", ")
}

// yaml returns the schedule as the value of the key times.
func (s Schedule) yaml() string {
	var words []string
	for _, p := range s.parts() {
		if p.list {
			words = append(words, p.key+": ["+quoted(p.values)+"]")
			continue
		}
		words = append(words, p.key+": "+quote(p.values[0]))
	}
	return "{" + strings.Join(words, ", ") + "}"
}

type schedulePart struct {
	key    string
	values []string
	list   bool
}

func (s Schedule) parts() []schedulePart {
	var parts []schedulePart
	if len(s.Days) > 0 {
		p := schedulePart{key: "days", list: true}
		for _, d := range s.Days {
			p.values = append(p.values, dayNames[d])
		}
		parts = append(parts, p)
	}
	if len(s.Hours) > 0 {
		p := schedulePart{key: "hours", list: true}
		for _, h := range s.Hours {
			p.values = append(p.values, h.String())
		}
		parts = append(parts, p)
	}
	if s.Zone != "" {
		parts = append(parts, schedulePart{key: "zone", values: []string{s.Zone}})
	}
	if !s.NotBefore.IsZero() {
		parts = append(parts, schedulePart{key: "not-before", values: []string{s.NotBefore.Format(time.RFC3339)}})
	}
	if !s.Until.IsZero() {
		parts = append(parts, schedulePart{key: "until", values: []string{s.Until.Format(time.RFC3339)}})
	}
	return parts
}

// wireSchedule is a schedule in JSON.
type wireSchedule struct {
	Days      []string   `json:"days,omitempty"`
	Hours     []string   `json:"hours,omitempty"`
	Zone      string     `json:"zone,omitempty"`
	NotBefore *time.Time `json:"not_before,omitempty"`
	Until     *time.Time `json:"until,omitempty"`
}

// MarshalJSON writes the schedule in words of the file format.
func (s Schedule) MarshalJSON() ([]byte, error) {
	w := wireSchedule{Zone: s.Zone}
	for _, p := range s.parts() {
		switch p.key {
		case "days":
			w.Days = p.values
		case "hours":
			w.Hours = p.values
		}
	}
	if !s.NotBefore.IsZero() {
		w.NotBefore = &s.NotBefore
	}
	if !s.Until.IsZero() {
		w.Until = &s.Until
	}
	return json.Marshal(w)
}

// UnmarshalJSON reads what MarshalJSON writes.
func (s *Schedule) UnmarshalJSON(b []byte) error {
	var w wireSchedule
	if err := json.Unmarshal(b, &w); err != nil {
		return fmt.Errorf("read schedule: %w", err)
	}
	var v Schedule
	if err := v.setDays(w.Days); err != nil {
		return fmt.Errorf("read schedule: %w", err)
	}
	if err := v.setHours(w.Hours); err != nil {
		return fmt.Errorf("read schedule: %w", err)
	}
	if err := v.setZone(w.Zone); err != nil {
		return fmt.Errorf("read schedule: %w", err)
	}
	if w.NotBefore != nil {
		v.NotBefore = *w.NotBefore
	}
	if w.Until != nil {
		v.Until = *w.Until
	}
	*s = v
	return nil
}

// setDays reads days and ranges of days: mon, mon-fri, fri-mon.
func (s *Schedule) setDays(list []string) error {
	for _, item := range list {
		first, last, isRange := strings.Cut(strings.ToLower(strings.TrimSpace(item)), "-")
		from := slices.Index(dayNames, first)
		to := from
		if isRange {
			to = slices.Index(dayNames, last)
		}
		if from < 0 || to < 0 {
			return hinted("the days are mon, tue, wed, thu, fri, sat, sun, and ranges like mon-fri", "%s is not a day", clip(item))
		}
		for d := from; ; d = (d + 1) % 7 {
			if !slices.Contains(s.Days, time.Weekday(d)) {
				s.Days = append(s.Days, time.Weekday(d))
			}
			if d == to {
				break
			}
		}
	}
	slices.Sort(s.Days)
	return nil
}

// setHours reads ranges like 08:00-18:30.
func (s *Schedule) setHours(list []string) error {
	for _, item := range list {
		first, last, ok := strings.Cut(strings.TrimSpace(item), "-")
		from, okFrom := minutes(first)
		to, okTo := minutes(last)
		if !ok || !okFrom || !okTo || from == minutesOfDay {
			return hinted("write hours like 08:00-18:30; 22:00-06:00 goes on into the next day", "%s are not hours", clip(item))
		}
		if from == to {
			return hinted("write 00:00-24:00 for the whole day", "hours %s are empty", clip(item))
		}
		if h := (Hours{From: from, To: to}); !slices.Contains(s.Hours, h) {
			s.Hours = append(s.Hours, h)
		}
	}
	slices.SortFunc(s.Hours, func(a, b Hours) int { return (a.From-b.From)*2*minutesOfDay + a.To - b.To })
	return nil
}

func minutes(s string) (int, bool) {
	if len(s) != 5 || s[2] != ':' {
		return 0, false
	}
	for _, i := range []int{0, 1, 3, 4} {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
	}
	h, m := int(s[0]-'0')*10+int(s[1]-'0'), int(s[3]-'0')*10+int(s[4]-'0')
	n := h*60 + m
	return n, m < 60 && n <= minutesOfDay
}

func (s *Schedule) setZone(name string) error {
	if name == "" {
		return nil
	}
	loc, err := time.LoadLocation(name)
	if err != nil || name == "Local" || strings.ContainsAny(name, "\"\\") {
		return hinted("write it like Europe/Berlin or Asia/Shanghai", "%s is not a time zone", clip(name))
	}
	s.Zone, s.loc = name, loc
	return nil
}

// parseMoment reads a time with its zone, or a day: the day's first moment, or
// with end the first moment after it.
func parseMoment(s string, loc *time.Location, end bool) (time.Time, error) {
	if loc == nil {
		loc = time.UTC
	}
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t, nil
	}
	t, err := time.ParseInLocation(time.DateOnly, s, loc)
	if err != nil {
		return time.Time{}, hinted("write 2026-09-01 or 2026-09-01T08:00:00+08:00", "%s is not a time", clip(s))
	}
	if end {
		t = t.AddDate(0, 0, 1)
	}
	return t, nil
}

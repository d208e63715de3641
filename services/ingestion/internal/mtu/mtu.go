// Package mtu says which events make a monthly tracked user. The rules are data:
// mtu_rules.yaml, embedded and versioned.
package mtu

import (
	_ "embed"
	"fmt"
	"maps"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/project"
)

//go:embed mtu_rules.yaml
var embedded []byte

// General is the id of the rule that exempts by name alone.
const General = "general"

// Rule is one list of exempt events.
type Rule struct {
	// ID is the rule's stable name, e.g. "clevertap".
	ID string `yaml:"id"`
	// Title is for people.
	Title string `yaml:"title"`
	// Source is where it is documented.
	Source string `yaml:"source"`
	// Marker is the event property that names the partner; empty when the name
	// alone exempts.
	Marker string `yaml:"marker"`
	// Values are the marker values that count, compared without regard to case.
	Values []string `yaml:"values"`
	// Events are the exact names.
	Events []string `yaml:"events"`
	// Notes are entries of Mixpanel's list that are no events: profile and
	// warehouse-mirror updates, which never reach the event store.
	Notes []string `yaml:"notes"`
	// Guardrail are the names among Events that still count in the guardrail's total.
	Guardrail []string `yaml:"guardrail"`
}

// Rules is a version of all the lists.
type Rules struct {
	// Version grows with every change and is stored with each event.
	Version int `yaml:"version"`
	// Rules are the lists, general first.
	Rules []Rule `yaml:"rules"`

	byName map[string][]entry
}

type entry struct {
	id, marker string
	values     []string
	guardrail  bool
}

// Verdict is what the rules say of one event.
type Verdict struct {
	// Rule is the id of the rule that exempts the event; empty means it qualifies.
	Rule string
	// Guardrail says whether the event counts in the guardrail's total.
	Guardrail bool
}

// Load reads the embedded rules.
func Load() (*Rules, error) { return Parse(embedded) }

// Parse reads rules from YAML and checks that they make sense.
func Parse(b []byte) (*Rules, error) {
	r := &Rules{byName: map[string][]entry{}}
	if err := yaml.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("mtu rules: %w", err)
	}
	if r.Version < 1 || r.Version > 65535 {
		return nil, fmt.Errorf("mtu rules: version %d: want 1 to 65535", r.Version)
	}
	ids := map[string]bool{}
	for _, rule := range r.Rules {
		if ids[rule.ID] {
			return nil, fmt.Errorf("mtu rules: rule %q is there twice", rule.ID)
		}
		ids[rule.ID] = true
		if rule.Marker != "" && rule.Marker != "$source" && rule.Marker != "$partner_id" {
			return nil, fmt.Errorf("mtu rules: rule %q: marker %q: want $source or $partner_id", rule.ID, rule.Marker)
		}
		for _, name := range rule.Guardrail {
			if !slices.Contains(rule.Events, name) {
				return nil, fmt.Errorf("mtu rules: rule %q: guardrail names %q, which is none of its events", rule.ID, name)
			}
		}
		if rule.ID == "" || (rule.Marker != "" && len(rule.Values) == 0) {
			return nil, fmt.Errorf("mtu rules: rule %q: needs an id, and values for its marker", rule.ID)
		}
		for _, name := range rule.Events {
			e := entry{id: rule.ID, marker: rule.Marker, values: rule.Values}
			for _, g := range rule.Guardrail {
				e.guardrail = e.guardrail || g == name
			}
			r.byName[name] = append(r.byName[name], e)
		}
	}
	return r, nil
}

// Names are the event names that any rule lists, sorted.
func (r *Rules) Names() []string { return slices.Sorted(maps.Keys(r.byName)) }

// Markers are the marker values of one event.
type Markers struct {
	// Source is `$source`, PartnerID is `$partner_id`; empty when absent.
	Source, PartnerID string
}

// Classify gives the verdict for an event's name and markers under a project's settings.
func (r *Rules) Classify(name string, m Markers, s *project.MTU) Verdict {
	entries, listed := r.byName[name]
	if !listed {
		return Verdict{Guardrail: true}
	}
	for i := range entries {
		e := &entries[i]
		if e.marker == "" || s.NameOnly || e.matches(m, s) {
			return Verdict{Rule: e.id, Guardrail: e.guardrail}
		}
	}
	return Verdict{Guardrail: true}
}

func (e *entry) matches(m Markers, s *project.MTU) bool {
	v := m.Source
	if e.marker == "$partner_id" {
		v = m.PartnerID
	}
	if v == "" {
		return false
	}
	accepted := e.values
	if own := s.Sources[e.id]; len(own) > 0 {
		accepted = own
	}
	for _, want := range accepted {
		if strings.EqualFold(v, want) {
			return true
		}
	}
	return false
}

// EventsPerUser is the average from which the guardrail counts events instead of users.
const EventsPerUser = 1000

// Count is what is billed for a month: max(users, ceil(events / EventsPerUser)).
// guarded says that the events decided.
func Count(users, guardrailEvents int64) (mtu int64, guarded bool) {
	byEvents := (guardrailEvents + EventsPerUser - 1) / EventsPerUser
	return max(users, byEvents), byEvents > users
}

package mtu_test

import (
	"os"
	"slices"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/mtu"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/project"
)

// FuzzParse proves that rules that are taken make sense, say the same when they
// are written and read again, and that an event is exempt by them exactly when
// a rule names it and its marker has one of the values.
func FuzzParse(f *testing.F) {
	own, err := os.ReadFile("mtu_rules.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(own, "Notification Sent", "clevertap")
	for _, s := range []string{
		"", "version: 1", "version: 70000", "version: 1\nrules: [{id: a, events: [X]}]", "version: 1\nrules: [{id: a, marker: $source, events: [X]}]",
		"version: 1\nrules: [{id: a, marker: $other, values: [v], events: [X]}]", "version: 1\nrules: [{id: a, events: [X]}, {id: a, events: [Y]}]",
		"version: 1\nrules: [{id: a, events: [X], guardrail: [Y]}]", "version: 1\nrules: [{id: p, marker: $partner_id, values: [V], events: [X, X]}]",
		"a: &a [x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c]\ne: [*d,*d,*d,*d,*d,*d,*d,*d]\nversion: 1", "- 1", "version: [", "version: 1\nrules: 7", "version: 1\nrules: [{id: a, events: {X: 1}}]",
	} {
		f.Add([]byte(s), "X", "v")
	}
	f.Fuzz(func(t *testing.T, b []byte, name, marker string) {
		r, err := mtu.Parse(b)
		if err != nil {
			if r != nil {
				t.Fatal("rules beside an error")
			}
			return
		}
		if r.Version < 1 || r.Version > 65535 {
			t.Fatalf("version %d", r.Version)
		}
		ids := map[string]bool{}
		for _, rule := range r.Rules {
			if rule.ID == "" || ids[rule.ID] || rule.Marker != "" && rule.Marker != "$source" && rule.Marker != "$partner_id" || rule.Marker != "" && len(rule.Values) == 0 {
				t.Fatalf("rule %+v is taken", rule)
			}
			ids[rule.ID] = true
			for _, g := range rule.Guardrail {
				if !slices.Contains(rule.Events, g) {
					t.Fatalf("rule %+v is taken", rule)
				}
			}
		}
		text, err := yaml.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		again, err := mtu.Parse(text)
		if err != nil || again.Version != r.Version || len(again.Rules) != len(r.Rules) {
			t.Fatalf("written and read again: %v", err)
		}
		m := mtu.Markers{Source: marker, PartnerID: marker}
		for _, nameOnly := range []bool{false, true} {
			s := &project.MTU{NameOnly: nameOnly}
			v := r.Classify(name, m, s)
			if v != again.Classify(name, m, s) {
				t.Fatalf("%q is %+v and %+v", name, v, again.Classify(name, m, s))
			}
			named := slices.ContainsFunc(r.Rules, func(rule mtu.Rule) bool { return slices.Contains(rule.Events, name) })
			if v.Rule != "" && !named || nameOnly && named && v.Rule == "" || v.Rule != "" && !ids[v.Rule] || v.Rule == "" && !v.Guardrail {
				t.Fatalf("%q is %+v", name, v)
			}
		}
	})
}

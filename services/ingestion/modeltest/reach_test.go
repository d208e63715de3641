package modeltest_test

import (
	"strings"
	"testing"

	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
)

// features are what a condition is made of.
func features(l *ingestionv1.Leaf) (out []string) {
	short := func(name, prefix string) string { return strings.ToLower(strings.TrimPrefix(name, prefix)) }
	b, s := l.GetBehavior(), l.GetSequence()
	switch {
	case b.GetFirstTime():
		out = append(out, "first time")
	case b != nil:
		out = append(out, short(b.GetMeasure().String(), "MEASURE_"))
	case s != nil:
		out = append(out, "order")
		if s.GetSteps()[len(s.GetSteps())-1].GetDidNot() {
			out = append(out, "did not")
		}
		if s.GetWithin() != nil {
			out = append(out, "within")
		}
	case l.GetIds() != nil:
		out = append(out, "ids")
	case l.GetUsers() != nil:
		out = append(out, "users")
	default:
		out = append(out, short(l.GetProperty().GetFilter().GetType().String(), "VALUE_TYPE_"))
	}
	if len(b.GetFilters()) > 0 {
		out = append(out, "a filter")
	}
	if b.GetWindow() != nil || s.GetWindow() != nil {
		out = append(out, "a window")
	}
	return out
}

// TestHistoriesReachWhatTheyAreFor runs the model alone: the random histories must
// lead into every rule, or their agreement says nothing about it.
func TestHistoriesReachWhatTheyAreFor(t *testing.T) {
	got := map[string]int{}
	for seed := range uint64(12) {
		s, steps := generate(seed)
		w := newWorld(&s)
		now := s.Start
		items := 0
		for _, st := range steps {
			now = now.Add(st.Advance)
			if st.Restart {
				got["restart"]++
			}
			if st.Request == nil {
				continue
			}
			items += len(st.Request.Items)
			a := w.take(st.Request, now.UnixMilli())
			if a.refused {
				got["refused request"]++
			}
			for _, f := range a.failures {
				got["failed "+strings.SplitN(f.field, ".", 2)[0]]++
			}
		}
		if items < operations {
			t.Errorf("seed %d has %d operations", seed, items)
		}
		for _, p := range w.projects {
			got["duplicate"] += int(p.duplicates)
			for kind := range p.warnings {
				got[kind]++
			}
			for _, l := range p.ids {
				got[l.reason]++
			}
			for _, e := range p.events {
				got["rule "+e.rule]++
				if e.generated {
					got["generated"]++
				}
				for _, note := range []string{"$failure_reason", "$identity_failure_reason"} {
					if why, ok := e.props[note].(string); ok {
						got[why]++
					}
				}
				if e.account != nil && e.account.into != nil {
					got["event of a merged user"]++
				}
			}
			by := p.byUser()
			leaves, asOf := p.conditions(now)
			for _, l := range leaves {
				if n := len(p.members(l, by, asOf)); n > 0 {
					for _, what := range features(l) {
						got["selects by "+what]++
					}
				}
			}
			for _, m := range p.months() {
				if p.usage(m, now.UnixMilli()).Guardrail {
					got["guardrail"]++
				}
			}
			if len(p.months()) > 2 {
				got["three months"]++
			}
		}
	}
	for _, want := range []string{
		"restart", "refused request", "duplicate", "generated", "guardrail", "three months", "event of a merged user",
		warnPartnerAlias, warnPartnerID, warnDevice, warnMerge, firstSeen, deviceLink, identify, aliasCall, mergeCall, partnerAlias,
		"too_many_ids", "already_linked_to_another_user", "anon_id_is_not_uuid_v4", "invalid_id", "unreadable_ids", "missing_ids", "distinct_ids_must_be_two", "device_linked_to_another_user",
		"failed event", "failed properties", "failed $set", "failed $add", "failed $append", "failed $union", "failed $remove", "failed $unset", "failed $token", "failed $distinct_id", "failed $",
		"selects by count", "selects by sum", "selects by average", "selects by min", "selects by max", "selects by distinct", "selects by distinct_days",
		"selects by first time", "selects by a filter", "selects by a window", "selects by order", "selects by did not", "selects by within", "selects by ids", "selects by users",
		"selects by string", "selects by number", "selects by bool", "selects by datetime", "selects by list",
		"rule ", "rule general", "rule airship", "rule braze", "rule clevertap", "rule iterable", "rule mailchimp", "rule onesignal", "rule xtremepush",
	} {
		if got[want] == 0 {
			t.Errorf("no history has: %s", want)
		}
	}
}

package modeltest_test

import (
	"slices"
	"strings"
	"time"
)

// general is Mixpanel's general list, exempt by name alone.
var general = []string{
	"$identify", "$create_alias", "$merge", "$opt_in", "$mp_session_record", "$experiment_started",
	"$campaign_delivery", "$campaign_received", "$campaign_bounced", "$campaign_marked_spam", "$message_suppressed", "$unsubscribe", "$journey_entered",
	"Mailchimp Campaign - Open", "Mailchimp Campaign - Click", "Mailchimp Campaign - Sent", "Mailchimp Campaign - Unsubscribed", "Mailchimp Campaign - Bounce",
}

// partnerEvents are some of each partner's exempt events.
var partnerEvents = map[string][]string{
	"airship": {"Airship Send", "Airship SMS Delivered"}, "braze": {"Canvas Entry", "Email Send"},
	"clevertap": {"Notification Sent", "Notification Clicked", "UTM Visited"}, "iterable": {"emailSend", "hostedUnsubscribeClick"},
	"leanplum": {"(Leanplum) Email Send"}, "mailchimp": {"Mailchimp - Opened Campaign"}, "moengage": {"Card Sent"},
	"onesignal": {"$app_open", "$campaign_open"}, "xtremepush": {"xp.message.open"},
}

// classify says which rule exempts an event, if any, and whether it counts in the
// guardrail's total.
func (p *project) classify(name, source, partner string) (rule string, guardrail bool) {
	if slices.Contains(general, name) {
		return "general", false
	}
	for _, rule := range sortedKeys(partnerEvents) {
		if !slices.Contains(partnerEvents[rule], name) {
			continue
		}
		marker := source
		if rule == "braze" {
			marker = partner
		}
		accepted := []string{rule}
		if own := p.sources[rule]; len(own) > 0 {
			accepted = own
		}
		if p.nameOnly || marker != "" && slices.ContainsFunc(accepted, func(s string) bool { return strings.EqualFold(s, marker) }) {
			return rule, name == "$campaign_open"
		}
	}
	return "", true
}

// usage is a month's count.
type usage struct {
	Month                          string
	MTU, Users, Qualifying, Exempt int64
	ExemptOnly                     int64
	Guardrail                      bool
	ByRule, BySource               map[string]int64
}

func month(ms int64) string { return time.UnixMilli(ms).UTC().Format("2006-01") }

// usage counts a month from all events.
func (p *project) usage(m string, now int64) usage {
	u := usage{Month: m, ByRule: map[string]int64{}, BySource: map[string]int64{}}
	first, _ := time.Parse("2006-01", m)
	end := first.AddDate(0, 1, 0).UnixMilli()
	qualifies := map[*account]bool{}
	total := int64(0)
	for _, e := range p.events {
		at := e.received
		if p.byEventTime {
			at = e.time
		}
		if month(at) != m {
			continue
		}
		u.BySource[e.source]++
		if e.guardrail {
			total++
		}
		if e.rule == "" {
			u.Qualifying++
		} else {
			u.Exempt++
			u.ByRule[e.rule]++
		}
		if e.account == nil {
			continue
		}
		who := e.account.user()
		if closedMonthRule && end <= now && !p.byEventTime {
			who = e.account.userAt(end)
		}
		qualifies[who] = qualifies[who] || e.rule == ""
	}
	for _, q := range qualifies {
		if q {
			u.Users++
		} else {
			u.ExemptOnly++
		}
	}
	u.MTU = u.Users
	for u.MTU*1000 < total {
		u.MTU++
		u.Guardrail = true
	}
	return u
}

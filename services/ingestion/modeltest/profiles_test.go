package modeltest_test

import (
	"encoding/json"
	"math"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"time"
)

var partnerProperties = []string{"$CleverTap_user_id", "$leanplum_user_id", "$moengage_user_id", "$onesignal_user_id", "$apptimize_user_id", "$vwo_user_id"}

// partnerID is a partner's id as a profile holds it: a text, or a number by its
// decimal text; "" when it is set to anything else.
func partnerID(profile map[string]any, name string) (id string, set bool) {
	switch v := profile[name].(type) {
	case nil:
		return "", false
	case string:
		return v, v != ""
	case json.Number:
		if n, ok := new(big.Int).SetString(v.String(), 10); ok {
			return n.String(), true
		}
		f, err := v.Float64()
		if err != nil {
			return "", true
		}
		return strconv.FormatFloat(f, 'f', -1, 64), true
	default:
		return "", true
	}
}

func holds(profile map[string]any, value string) bool {
	for _, name := range partnerProperties {
		if v, ok := partnerID(profile, name); ok && v == value {
			return true
		}
	}
	return false
}

func (p *project) room(u *account) bool { return p.system != original || len(p.idsOf(u)) < maxCluster }

// claim makes a partner id an alias of user u unless it is somebody else's.
func (p *project) claim(u *account, value string, now int64) (own bool) {
	if !possibleID(value) {
		return false
	}
	l := p.ids[value]
	switch {
	case l != nil && l.account.user() == u:
		return true
	case !p.room(u):
		return false
	case l == nil: // nobody knows it
		p.ids[value] = &link{account: u, reason: partnerAlias, at: now}
		return true
	case l.reason == partnerAlias: // it moves, unless its user holds it
		if holds(l.account.user().profile, value) {
			return false
		}
		l.account, l.at = u, now
		return true
	case l.reason == firstSeen && l.account.into == nil && len(l.account.profile) == 0 && len(p.idsOf(l.account)) == 1:
		p.merge(l.account, u, partnerAlias, now) // a bare id
		return true
	}
	return false
}

// release gives a partner id that its user no longer holds to the user with the
// lowest number who holds it and waits.
func (p *project) release(value string, now int64) {
	l := p.ids[value]
	if l == nil || l.reason != partnerAlias || holds(l.account.user().profile, value) {
		return
	}
	for _, a := range p.accounts {
		if a.into == nil && holds(a.profile, value) && p.room(a) {
			l.account, l.at = a, now
			return
		}
	}
}

// follow looks at the partner properties of a user whose profile was changed.
func (p *project) follow(u *account, before map[string]any, written func(string) bool, now int64) {
	for _, name := range partnerProperties {
		was, had := partnerID(before, name)
		v, set := partnerID(u.profile, name)
		changed := had != set || was != v
		if !set || !changed && !written(name) {
			continue
		}
		if own := p.claim(u, v, now); !own && changed {
			if possibleID(v) {
				p.warn(warnPartnerAlias)
			} else {
				p.warn(warnPartnerID)
			}
		}
	}
	for _, name := range partnerProperties {
		was, had := partnerID(before, name)
		if v, _ := partnerID(u.profile, name); had && v != was {
			p.release(was, now)
		}
	}
}

// update is one object of /engage.
type update struct {
	id          string
	ops         map[string]map[string]any
	unset       []string
	delete      bool
	ignoreTime  bool
	ignoreAlias bool
}

var listOps = []string{"$set", "$set_once", "$add", "$append", "$union", "$remove"}

func (u *update) writes(name string) bool {
	_, a := u.ops["$set"][name]
	_, b := u.ops["$set_once"][name]
	return a || b
}

// creates: the operations that make a profile that is not there. One that can't
// be applied to an empty profile makes none.
func (u *update) creates() bool {
	changed, _ := u.apply(map[string]any{}, 0)
	return !u.delete && changed
}

// engage applies an update; failed lists the fields that could not be changed.
func (p *project) engage(u *update, now int64) (applied bool, failed []string) {
	if p.ids[u.id] == nil && u.creates() {
		p.ensure(u.id, now)
	}
	l := p.ids[u.id]
	if l == nil {
		if !u.delete {
			_, failed = u.apply(map[string]any{}, now)
		}
		return len(failed) == 0, failed
	}
	a := l.account.user()
	former := p.former(u.id)
	if u.ignoreAlias && former != nil {
		a = former
	}
	before := clone(a.profile)
	switch {
	case u.delete && u.ignoreAlias && l.reason != firstSeen && former == nil:
		return true, nil // the alias itself has no profile
	case u.delete:
		if a.profile == nil {
			return true, nil
		}
		a.profile = nil
		p.follow(a, before, u.writes, now)
		return true, nil
	}
	after := clone(a.profile)
	changed, failed := u.apply(after, now)
	if changed {
		a.profile, a.updated = after, now
		if len(after) == 0 {
			a.profile = nil
		}
	}
	p.follow(a, before, u.writes, now)
	return changed || len(failed) == 0, failed
}

func clone(m map[string]any) map[string]any {
	out := map[string]any{}
	for k, v := range m {
		out[k] = v
	}
	return out
}

// apply changes props by all operations in their order.
func (u *update) apply(props map[string]any, now int64) (changed bool, failed []string) {
	for _, name := range u.unset {
		if _, ok := props[name]; ok {
			delete(props, name)
			changed = true
		}
	}
	for _, op := range listOps {
		for _, name := range sortedKeys(u.ops[op]) {
			v := u.ops[op][name]
			old, there := props[name]
			next, ok := operate(op, old, there, v)
			if !ok {
				failed = append(failed, op+"."+name)
				continue
			}
			if next == nil && old == nil && op != "$set" && op != "$set_once" {
				continue
			}
			if !there || literal(next) != literal(old) {
				props[name] = next
				changed = true
			}
		}
	}
	// Every write through the API sets it, one that changes nothing else as well.
	if (changed || len(failed) == 0) && len(props) > 0 && !u.ignoreTime {
		seen := time.UnixMilli(now).UTC().Format("2006-01-02T15:04:05")
		changed = changed || props["$last_seen"] != seen
		props["$last_seen"] = seen
	}
	return changed, failed
}

// operate is what one operation makes of one property.
func operate(op string, old any, there bool, v any) (next any, ok bool) {
	list, isList := old.([]any)
	switch op {
	case "$set":
		return v, true
	case "$set_once":
		if there {
			return old, true
		}
		return v, true
	case "$add":
		d, isNum := v.(json.Number)
		if !isNum {
			return nil, false
		}
		if old == nil {
			return d, true
		}
		n, isNum := old.(json.Number)
		if !isNum {
			return nil, false
		}
		return sum(n, d), true
	case "$append":
		if old != nil && !isList {
			return nil, false
		}
		return append(slices.Clone(list), v), true
	case "$union":
		if old != nil && !isList {
			return nil, false
		}
		add, many := v.([]any)
		if !many {
			add = []any{v}
		}
		list = slices.Clone(list)
		for _, x := range add {
			switch x.(type) {
			case string, json.Number:
			default:
				return nil, false
			}
			if !slices.ContainsFunc(list, func(y any) bool { return canonical(x) == canonical(y) }) {
				list = append(list, x)
			}
		}
		if list == nil {
			list = []any{}
		}
		return list, true
	default: // $remove
		switch v.(type) {
		case []any, map[string]any:
			return nil, false
		}
		if old == nil {
			return nil, true
		}
		if !isList {
			return nil, false
		}
		return slices.DeleteFunc(slices.Clone(list), func(x any) bool { return canonical(x) == canonical(v) }), true
	}
}

// sum adds exactly while both are 64-bit integers and so is the sum, else as doubles.
func sum(a, b json.Number) json.Number {
	x, ok1 := new(big.Int).SetString(a.String(), 10)
	y, ok2 := new(big.Int).SetString(b.String(), 10)
	if ok1 && ok2 && x.IsInt64() && y.IsInt64() {
		if z := new(big.Int).Add(x, y); z.IsInt64() {
			return json.Number(z.String())
		}
	}
	f, _ := a.Float64()
	g, _ := b.Float64()
	if f += g; math.Abs(f) < 1e21 { // as JavaScript writes it: without an exponent
		return json.Number(strconv.FormatFloat(f, 'f', -1, 64))
	}
	return json.Number(strconv.FormatFloat(f, 'g', -1, 64))
}

// canonical writes a value so that equal values are equal texts: names sorted,
// numbers by their value.
func canonical(v any) string {
	var b strings.Builder
	write(&b, v, func(n json.Number) string {
		r, ok := new(big.Rat).SetString(n.String())
		if !ok {
			return "number " + n.String()
		}
		return r.RatString()
	})
	return b.String()
}

// literal keeps numbers as they are written.
func literal(v any) string {
	var b strings.Builder
	write(&b, v, json.Number.String)
	return b.String()
}

// rounded is canonical for readers who have doubles only.
func rounded(v any) string {
	var b strings.Builder
	write(&b, v, func(n json.Number) string {
		f, _ := n.Float64()
		return strconv.FormatFloat(f, 'g', -1, 64)
	})
	return b.String()
}

func write(b *strings.Builder, v any, number func(json.Number) string) {
	switch v := v.(type) {
	case json.Number:
		b.WriteString(number(v))
	case float64:
		b.WriteString(number(json.Number(strconv.FormatFloat(v, 'g', -1, 64))))
	case []any:
		b.WriteByte('[')
		for i, x := range v {
			if i > 0 {
				b.WriteByte(',')
			}
			write(b, x, number)
		}
		b.WriteByte(']')
	case map[string]any:
		b.WriteByte('{')
		for i, k := range sortedKeys(v) {
			if i > 0 {
				b.WriteByte(',')
			}
			b.WriteString(strconv.Quote(k) + ":")
			write(b, v[k], number)
		}
		b.WriteByte('}')
	case string:
		b.WriteString(strconv.Quote(v))
	case bool:
		b.WriteString(strconv.FormatBool(v))
	default:
		b.WriteString("null")
	}
}

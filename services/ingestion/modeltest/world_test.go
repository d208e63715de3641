package modeltest_test

import (
	"slices"
	"strings"
)

// The routes, as numbers of the wire.
const (
	track   = 1
	imports = 2
	engage  = 3
	groups  = 4
)

// request is one request of Mixpanel's wire.
type request struct {
	Endpoint int
	// Project is whose credential /import carries.
	Project int64
	// Strict is `strict=1`; Lines is NDJSON, Gzip and Form say how the body travels.
	Strict, Lines, Gzip, Form bool
	// Items are JSON texts, some of them broken.
	Items []string
}

// world is the model of a service.
type world struct{ projects []*project }

func newWorld(s *setup) *world {
	w := &world{}
	for i, system := range []int{simplified, original, legacy} {
		p := newProject(int64(i+1), system)
		p.nameOnly, p.byEventTime, p.sources = s.NameOnly, s.ByEventTime, s.Sources
		w.projects = append(w.projects, p)
	}
	return w
}

func (w *world) byID(id int64) *project { return w.projects[id-1] }

func (w *world) byToken(v any) *project {
	for _, p := range w.projects {
		if v == p.token {
			return p
		}
	}
	return nil
}

// restart is the service's: what it counts since the start is gone.
func (w *world) restart() {
	for _, p := range w.projects {
		p.duplicates = 0
	}
}

// take takes a request and says how it is answered.
func (w *world) take(r *request, now int64) (a answer) {
	values := make([]any, len(r.Items))
	broken := map[int]bool{}
	for i, item := range r.Items {
		v, ok := decode(item)
		if !ok && !r.Lines {
			return answer{refused: true}
		}
		values[i], broken[i] = v, !ok
	}
	fail := func(i int, field string) { a.failures = append(a.failures, failure{i, field}) }
	if r.Endpoint == engage || r.Endpoint == groups {
		w.update(r, values, broken, &a, now)
	} else {
		lists := map[*project][]*event{}
		for i, v := range values {
			if broken[i] {
				fail(i, "event")
				continue
			}
			e, field := readEvent(v)
			if field != "" {
				fail(i, field)
				continue
			}
			p := w.byID(r.Project)
			if r.Endpoint == track {
				if p = w.byToken(e.props["token"]); p == nil {
					fail(i, "properties.token")
					continue
				}
			}
			if e.dropped() {
				a.accepted++
			} else if field := p.judge(e, r.Endpoint == track, r.Strict && r.Endpoint == imports, now); field != "" {
				fail(i, field)
			} else {
				a.accepted++
				e.before, _ = e.props["$distinct_id_before_identity"].(string)
				// What ingestion writes itself is not the sender's to say.
				for _, name := range []string{"$import", "$mp_api_endpoint", "$mp_api_timestamp_ms", "mp_processing_time_ms", "$distinct_id_before_identity", "$identity_failure_reason", "$failure_reason", "$failure_description", "$is_reshuffled"} {
					delete(e.props, name)
				}
				e.props["$mp_event_size"] = float64(len(r.Items[i]))
				lists[p] = append(lists[p], e)
			}
		}
		for p, list := range lists {
			p.ingest(list, r.Endpoint == imports, now)
		}
	}
	slices.SortStableFunc(a.failures, func(x, y failure) int { return x.index - y.index })
	return a
}

// update takes the objects of /engage and /groups.
func (w *world) update(r *request, values []any, broken map[int]bool, a *answer, now int64) {
	type one struct {
		i int
		u *update
	}
	lists := map[*project][]one{}
	var order []*project
	for i, v := range values {
		if broken[i] {
			a.failures = append(a.failures, failure{i, "$"})
			continue
		}
		u, field := readUpdate(v, r.Endpoint == groups)
		var p *project
		if field == "" {
			if p = w.byToken(v.(map[string]any)["$token"]); p == nil {
				field = "$token"
			}
		}
		if field != "" {
			a.failures = append(a.failures, failure{i, field})
			continue
		}
		if lists[p] == nil {
			order = append(order, p)
		}
		u.id = p.known(u.id)
		lists[p] = append(lists[p], one{i, u})
	}
	for _, p := range order {
		// New users of a batch get their numbers before its operations count.
		for _, o := range lists[p] {
			if r.Endpoint == engage && o.u.creates() {
				p.ensure(o.u.id, now)
			}
		}
		for _, o := range lists[p] {
			if r.Endpoint == groups { // profiles of groups are apart from the users'
				a.accepted++
				continue
			}
			ok, failed := p.engage(o.u, now)
			if ok {
				a.accepted++
			}
			for _, f := range failed {
				a.failures = append(a.failures, failure{o.i, f})
			}
		}
	}
}

// readUpdate reads an object; it returns the field at fault, or "".
func readUpdate(v any, group bool) (*update, string) {
	o, ok := v.(map[string]any)
	if !ok {
		return nil, "$"
	}
	u := &update{ops: map[string]map[string]any{}}
	yes := func(v any) bool { return v == true || v == "true" || canonical(v) == "1" }
	u.ignoreTime, u.ignoreAlias = yes(o["$ignore_time"]), yes(o["$ignore_alias"])
	_, u.delete = o["$delete"]
	if group {
		if o["$group_key"] == nil || o["$group_id"] == nil {
			return nil, "$group_key"
		}
		return u, ""
	}
	var isID bool
	u.id, _, isID = idText(o["$distinct_id"])
	if !isID || !possibleID(u.id) {
		return nil, "$distinct_id"
	}
	effect := u.delete
	for _, op := range listOps {
		v, given := o[op]
		if !given {
			continue
		}
		m, ok := v.(map[string]any)
		if !ok {
			return nil, op
		}
		u.ops[op] = map[string]any{}
		for _, name := range sortedKeys(m) {
			x := m[name]
			if depth(x) > 3 {
				return nil, op + "." + name
			}
			if t, ok := x.(string); ok {
				x = cut(t)
			}
			u.ops[op][name] = x
			effect = true
		}
	}
	if v, given := o["$unset"]; given {
		names, ok := texts(v)
		if !ok {
			return nil, "$unset"
		}
		u.unset = names
		effect = effect || len(names) > 0
	}
	if !effect {
		for _, k := range sortedKeys(o) {
			if strings.HasPrefix(k, "$se") {
				return nil, k
			}
		}
		return nil, "$"
	}
	return u, ""
}

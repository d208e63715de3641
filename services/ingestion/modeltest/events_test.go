package modeltest_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

const (
	dayMS  = 86_400_000
	hourMS = 3_600_000
	y1971  = 31_536_000_000 // 1971-01-01; as seconds it would be the year 2969
)

var (
	uuid4    = regexp.MustCompile(`^(?i)[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)
	decimal  = regexp.MustCompile(`^[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?$`)
	insertID = regexp.MustCompile(`^[A-Za-z0-9-]+$`)
)

// failure is one record that was not taken.
type failure struct {
	index int
	field string
}

// answer is what a sender learns.
type answer struct {
	refused  bool // as a whole
	accepted int
	failures []failure
}

func (a answer) String() string {
	return fmt.Sprintf("refused=%v accepted=%d failures=%v", a.refused, a.accepted, a.failures)
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// decode reads one JSON value; numbers keep their text.
func decode(s string) (v any, ok bool) {
	d := json.NewDecoder(bytes.NewReader([]byte(s)))
	d.UseNumber()
	if d.Decode(&v) != nil {
		return nil, false
	}
	_, err := d.Token()
	return v, err == io.EOF
}

// event is one event on its way in.
type event struct {
	name       string
	props      map[string]any // all of them, as sent
	time, sent int64
	insert     string
	generated  bool
	arrival    string
	inferred   bool // the arrival is the call's own id, not one that was sent
	link       string
	before     string // the id at arrival, of an event of an export
}

func isIdentity(name string) bool {
	return name == "$identify" || name == "$create_alias" || name == "$merge"
}

// readEvent checks what does not depend on the project. It returns the field at
// fault, or "".
func readEvent(v any) (e *event, field string) {
	o, ok := v.(map[string]any)
	if !ok {
		return nil, "event"
	}
	e = &event{}
	if e.name, ok = o["event"].(string); !ok || e.name == "" {
		return nil, "event"
	}
	e.name = cut(e.name)
	if e.props, ok = o["properties"].(map[string]any); !ok {
		return nil, "properties"
	}
	for _, name := range sortedKeys(e.props) {
		v := e.props[name]
		switch name {
		case "token", "ip", "$insert_id":
			continue
		case "time":
			if _, ok := readTime(v); !ok {
				return nil, "properties.time"
			}
			continue
		case "distinct_id", "$device_id", "$user_id":
			if _, _, ok := idText(v); !ok {
				return nil, "properties." + name
			}
		}
		if depth(v) > 3 {
			return nil, "properties." + name
		}
	}
	if len(e.props) > 255 {
		return nil, "properties"
	}
	return e, ""
}

func cut(s string) string {
	if r := []rune(s); len(r) > 255 {
		return string(r[:255])
	}
	return s
}

func depth(v any) int {
	n := 0
	switch v := v.(type) {
	case []any:
		for _, x := range v {
			n = max(n, depth(x))
		}
	case map[string]any:
		for _, x := range v {
			n = max(n, depth(x))
		}
	default:
		return 0
	}
	return n + 1
}

// idText reads an id: a text, or a number or boolean by its JSON text.
func idText(v any) (id string, present, ok bool) {
	switch v := v.(type) {
	case nil:
		return "", false, true
	case string:
		return v, true, true
	case json.Number:
		return v.String(), true, true
	case bool:
		return strconv.FormatBool(v), true, true
	default:
		return "", true, false
	}
}

func readTime(v any) (ms int64, ok bool) {
	s, isText := v.(string)
	if n, isNum := v.(json.Number); isNum {
		s = n.String()
	} else if !isText {
		return 0, false
	}
	if !decimal.MatchString(s) {
		return 0, false
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil {
		return 0, false
	}
	if f < y1971 {
		f *= 1000
	}
	return int64(f + 0.5), true
}

// dropped: `$ignore` is true or a non-empty text.
func (e *event) dropped() bool {
	switch v := e.props["$ignore"].(type) {
	case bool:
		return v
	case string:
		return v != ""
	default:
		return false
	}
}

// known is the id that the project knows an id by: the browser's anonymous id goes
// without its prefix in ORIGINAL projects.
func (p *project) known(id string) string {
	if p.system == original && strings.HasPrefix(id, "$device:") && len(id) == len("$device:")+36 {
		return id[len("$device:"):]
	}
	return id
}

// judge applies the rules of a route and a project.
func (p *project) judge(e *event, track, strict bool, now int64) (field string) {
	if track && e.name == "$merge" {
		return "event"
	}
	if v, ok := e.props["time"]; ok {
		e.sent, _ = readTime(v)
	} else if strict {
		return "properties.time"
	} else {
		e.sent = now
	}
	if e.sent < y1971 || track && e.sent < now-5*dayMS || strict && e.sent > now+hourMS {
		return "properties.time"
	}
	e.time = min(e.sent, now)

	id, _, isID := idText(e.props["$insert_id"])
	good := isID && id != "" && len(id) <= 36 && !banned[id]
	switch {
	case strict && (!good || !insertID.MatchString(id)):
		return "properties.$insert_id"
	case good:
		e.insert = id
	default:
		e.generated = true
	}

	distinct, given, _ := idText(e.props["distinct_id"])
	user, _, _ := idText(e.props["$user_id"])
	device, _, _ := idText(e.props["$device_id"])
	e.arrival = distinct
	if p.system == simplified {
		if device != "" && !strings.HasPrefix(device, "$device:") {
			device = "$device:" + device
		}
		switch {
		case user != "":
			e.arrival, given = user, true
			if device != "" && !isIdentity(e.name) && possibleID(strings.TrimPrefix(device, "$device:")) && possibleID(device) {
				e.link = device
			}
		case device != "":
			e.arrival, given = device, true
		}
	}
	e.arrival = p.known(e.arrival)
	if strict && !given && !isIdentity(e.name) {
		return "properties.distinct_id"
	}
	if e.arrival != "" && !possibleID(e.arrival) {
		return "properties.distinct_id"
	}
	if p.system == original && e.arrival == "" {
		e.infer()
	}
	return ""
}

func idOrNone(v any) (string, bool) {
	s, ok := v.(string)
	return s, ok || v == nil
}

// infer: an identity call without distinct_id is its first id's.
func (e *event) infer() {
	id := ""
	switch e.name {
	case "$identify":
		_, ok1 := idOrNone(e.props["$anon_id"])
		_, ok2 := idOrNone(e.props["$anon_distinct_id"])
		if s, ok := idOrNone(e.props["$identified_id"]); ok && ok1 && ok2 {
			id = s
		}
	case "$merge":
		if both, ok := texts(e.props["$distinct_ids"]); ok && len(both) == 2 && both[1] != "" {
			id = both[0]
		}
	}
	if possibleID(cut(id)) {
		e.arrival, e.inferred = cut(id), true
	}
}

// ingest takes the events of a batch that passed, in order.
func (p *project) ingest(list []*event, isImport bool, now int64) {
	// All new ids of a batch become users before its links count.
	if p.system != legacy {
		for _, e := range list {
			if e.arrival != "" && !e.inferred {
				p.ensure(e.arrival, now)
			}
		}
	}
	for _, e := range list {
		refused, note := "", "$failure_reason"
		switch {
		case e.link != "":
			refused, note = p.linkDevice(e.arrival, e.link, now), "$identity_failure_reason"
		case e.name == "$identify" && p.system == original, e.name == "$merge" && p.system == original, e.name == "$create_alias" && p.system != simplified:
			refused = p.call(e, now)
		}
		s := &storedEvent{name: e.name, time: e.time, received: now, insert: e.insert, generated: e.generated, imports: isImport, props: map[string]any{}}
		if e.arrival != "" {
			s.account, s.arrival = p.ensure(e.arrival, now).account, e.arrival
		}
		if !e.generated {
			id := e.arrival
			if e.before != "" {
				id = e.before
			}
			key := fmt.Sprintf("%q %d %q %q", e.name, e.sent, id, e.insert)
			if p.seen[key] {
				p.duplicates++
				continue
			}
			p.seen[key] = true
		}
		for k, v := range e.props {
			switch k {
			case "token", "ip", "time", "distinct_id", "$insert_id":
				continue
			}
			if t, ok := v.(string); ok {
				v = cut(t)
			}
			s.props[cut(k)] = v
		}
		if refused != "" {
			s.props[note] = refused
			if note == "$failure_reason" {
				s.props["$failure_description"] = true
			}
		}
		s.source, _ = e.props["$source"].(string)
		partner, _ := e.props["$partner_id"].(string)
		s.rule, s.guardrail = p.classify(e.name, s.source, partner)
		p.events = append(p.events, s)
	}
}

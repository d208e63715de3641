package profile

import (
	"bytes"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/event"
)

// Decode reads the next value of dec as an update in Mixpanel's /engage or
// /groups form. The error is a syntax error, after which dec is of no use; the
// failure is a fault of this one update.
func Decode(dec *jsontext.Decoder, u *Update) (*event.Failure, error) {
	if dec.PeekKind() != '{' {
		if err := dec.SkipValue(); err != nil {
			return nil, err
		}
		return u.Fail("$", "each element must be an object"), nil
	}
	if _, err := dec.ReadToken(); err != nil {
		return nil, err
	}
	start := dec.InputOffset() - 1 // of the bracket: a comma before it belongs to the batch
	var fail *event.Failure
	var suspect string // the first key that is neither an operation with something to do nor known
	for dec.PeekKind() != '}' {
		t, err := dec.ReadToken()
		if err != nil {
			return nil, err
		}
		name := t.String()
		v, err := dec.ReadValue()
		if err != nil {
			return nil, err
		}
		if suspect == "" && !slices.Contains(attributes, name) {
			suspect = name
		}
		if f := u.member(name, v); f != nil && fail == nil {
			fail = f
		}
	}
	if _, err := dec.ReadToken(); err != nil {
		return nil, err
	}
	switch {
	case fail != nil:
	case dec.InputOffset()-start > event.MaxBytes:
		fail = u.Fail("$", "an update must be at most 1 MB")
	case u.GroupKey != "" && u.GroupID == "":
		fail = u.Fail("$group_id", GroupPart)
	case u.GroupKey == "" && u.DistinctID == "":
		fail = u.Fail("$distinct_id", "missing")
	case u.Empty():
		fail = u.nothing(suspect)
	}
	return fail, nil
}

// GroupPart is what is wrong with an update of a group that half of its name is
// missing of.
const GroupPart = "missing; a group needs $group_key and $group_id"

// attributes are the keys of an update that are no operations.
var attributes = []string{
	"$token", "$distinct_id", "$group_key", "$group_id", "$ignore_time", "$ignore_alias", "$time",
	"$ip", "$latitude", "$longitude", // a place to look up, which is not done: nothing of it is stored
	"$device_id", "$user_id", "$had_persisted_distinct_id", // the browser's hints: it is events that link
}

// operations are the keys that change a profile.
var operations = []string{"$set", "$set_once", "$add", "$append", "$union", "$remove", "$unset", "$delete"}

// nothing fails an update without an effect; key is one that was taken for an
// operation, if any.
func (u *Update) nothing(key string) *event.Failure {
	list := strings.Join(operations, ", ")
	switch {
	case key == "":
		return u.Fail("$", "no operation; one of "+list+" is required")
	case slices.Contains(operations, key):
		return u.Fail(key, "names no property")
	default:
		return u.Fail(string(event.Cut([]byte(key))), "not an operation; one of "+list+" is required")
	}
}

func (u *Update) member(name string, v jsontext.Value) *event.Failure {
	switch name {
	case "$token":
		u.Token, _ = scalar(v)
	case "$distinct_id":
		return u.id(&u.DistinctID, name, v)
	case "$group_key":
		return u.id(&u.GroupKey, name, v)
	case "$group_id":
		return u.id(&u.GroupID, name, v)
	case "$ignore_time":
		u.IgnoreTime = truthy(v)
	case "$ignore_alias":
		u.IgnoreAlias = truthy(v)
	case "$delete":
		u.Delete = true
	case "$set":
		return u.operands(&u.Set, name, v)
	case "$set_once":
		return u.operands(&u.SetOnce, name, v)
	case "$add":
		return u.operands(&u.Add, name, v)
	case "$append":
		return u.operands(&u.Append, name, v)
	case "$union":
		return u.operands(&u.Union, name, v)
	case "$remove":
		return u.operands(&u.Remove, name, v)
	case "$unset":
		return u.names(v)
	}
	return nil // the other attributes, and what later versions may add
}

func (u *Update) id(dst *string, field string, v jsontext.Value) *event.Failure {
	s, ok := scalar(v)
	switch {
	case !ok && v.Kind() == '"':
		return u.Fail(field, event.NotUTF8)
	case !ok || s == "":
		return u.Fail(field, "must be a non-empty string")
	case len(s) > event.MaxText:
		return u.Fail(field, "must be at most 255 bytes")
	case event.Banned([]byte(s)):
		return u.Fail(field, event.Placeholder+"the id itself")
	}
	*dst = s
	return nil
}

func (u *Update) operands(dst *[]Property, op string, v jsontext.Value) *event.Failure {
	if v.Kind() != '{' {
		return u.Fail(op, "must be an object")
	}
	m, err := Parse(v)
	if err != nil {
		return u.Fail(op, "must be an object")
	}
	if !utf8.Valid(v) {
		for _, name := range slices.Sorted(maps.Keys(m)) {
			if !utf8.Valid(m[name]) {
				return u.Fail(op+"."+event.Path(name), event.NotUTF8)
			}
		}
		return u.Fail(op, "a property name is "+event.NotUTF8)
	}
	delete(m, "$ip") // mixpanel-go's SetIp repeats it here: an address is never stored
	for _, name := range slices.Sorted(maps.Keys(m)) {
		c, why := clean(m[name])
		if why != "" {
			return u.Fail(op+"."+string(event.Cut([]byte(name))), why)
		}
		*dst = append(*dst, Property{Name: string(event.Cut([]byte(name))), Value: c})
	}
	return nil
}

func (u *Update) names(v jsontext.Value) *event.Failure {
	list, why := elements(v)
	if why != "" {
		return u.Fail("$unset", "must be a list of property names")
	}
	for _, e := range list {
		s, ok := scalar(e)
		if e.Kind() != '"' {
			return u.Fail("$unset", "must be a list of property names")
		}
		if !ok {
			return u.Fail("$unset", event.NotUTF8)
		}
		u.Unset = append(u.Unset, string(event.Cut([]byte(s))))
	}
	return nil
}

// scalar reads a string, or a number or boolean by its JSON text.
func scalar(v jsontext.Value) (string, bool) {
	switch v.Kind() {
	case '"':
		if !utf8.Valid(v) {
			return "", false
		}
		b, err := jsontext.AppendUnquote(nil, v)
		return string(b), err == nil
	case '0', 't', 'f':
		return string(v), true
	default:
		return "", false
	}
}

// truthy reads a modifier: true, "true" and 1 count.
func truthy(v jsontext.Value) bool {
	return string(v) == "true" || string(v) == `"true"` || string(v) == "1"
}

// DecodeOne reads a single update.
func DecodeOne(b []byte, index int) (*Update, *event.Failure) {
	u := &Update{Index: index}
	f, err := Decode(jsontext.NewDecoder(bytes.NewBuffer(event.Repair(b)), event.Options...), u)
	if err != nil {
		return nil, u.Fail("$", "not valid JSON")
	}
	return u, f
}

package channel

import (
	"encoding/json"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// role is a column that CleverTap gives a meaning of its own.
type role int

const (
	other role = iota
	email
	phone
	firstName
	lastName
)

// column is a Column made ready for writing many users.
type column struct {
	role role
	// partnerKey and profileKey are the field's quoted names with the colon.
	partnerKey, profileKey []byte
}

func roleOf(c Column) role {
	switch {
	case c.Property == "$email" || strings.EqualFold(c.Field, "email"):
		return email
	case c.Property == "$phone" || strings.EqualFold(c.Field, "phone") || strings.EqualFold(c.Field, "phone_number"):
		return phone
	case c.Property == "$first_name":
		return firstName
	case c.Property == "$last_name":
		return lastName
	}
	return other
}

func prepare(columns []Column) []column {
	out := make([]column, 0, len(columns))
	for _, c := range columns {
		field := c.Field
		if field == "" {
			field = strings.TrimPrefix(c.Property, "$")
		}
		k := column{role: roleOf(c)}
		partner, profile := field, field
		switch k.role {
		case email:
			partner, profile = "email", "Email"
		case phone:
			partner, profile = "phone_number", "Phone"
		case firstName:
			partner = "first_name"
		case lastName:
			partner = "last_name"
		case other:
		}
		k.partnerKey = append(quote(partner), ':')
		k.profileKey = append(quote(profile), ':')
		out = append(out, k)
	}
	return out
}

func quote(s string) []byte {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err) // a string always has a JSON form
	}
	return b
}

// text reads a JSON string; ok is false for anything else.
func text(raw []byte) (s string, ok bool) {
	if len(raw) < 2 || raw[0] != '"' {
		return "", false
	}
	// The common case has nothing to unescape.
	if in := raw[1 : len(raw)-1]; !slices.Contains(in, '\\') && utf8.Valid(in) {
		return string(in), true
	}
	return s, json.Unmarshal(raw, &s) == nil
}

// validEmail reports whether CleverTap takes the address: one that it refuses
// would sink the whole record. It is stricter than the grammar of RFC 5322, as
// receivers are, and cheap, because it runs once a user.
func validEmail(s string) bool {
	local, domain, ok := strings.Cut(s, "@")
	if !ok || local == "" || len(local) > 64 || len(s) > 254 {
		return false
	}
	for i := range len(local) {
		if c := local[i]; c <= ' ' || c >= 0x7f || strings.IndexByte(`"<>(),;:\[]`, c) >= 0 {
			return false
		}
	}
	if local[0] == '.' || local[len(local)-1] == '.' || strings.Contains(local, "..") {
		return false
	}
	labels, letters := 0, 0
	for label := range strings.SplitSeq(domain, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		letters = 0
		for i := range len(label) {
			switch c := label[i] | 0x20; {
			case c >= 'a' && c <= 'z':
				letters++
			case label[i] >= '0' && label[i] <= '9', label[i] == '-':
			default:
				return false
			}
		}
		labels++
	}
	// The last label is a top-level domain.
	return labels >= 2 && letters >= 2
}

var (
	e164       = regexp.MustCompile(`^\+[1-9][0-9]{6,14}$`)
	phoneNoise = strings.NewReplacer(" ", "", "-", "", "(", "", ")", "", ".", "")
)

// normalPhone returns the number in E.164, or false.
func normalPhone(s string) (string, bool) {
	s = phoneNoise.Replace(s)
	return s, e164.MatchString(s)
}

// maxValue is CleverTap's limit on a text value, in bytes.
const maxValue = 512

// isoTime matches the times that profiles hold as text; a plain date stays text.
var isoTime = regexp.MustCompile(`^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d+)?(Z|[+-]\d{2}:?\d{2})?$`)

func parseTime(s string) (time.Time, bool) {
	if !isoTime.MatchString(s) {
		return time.Time{}, false
	}
	for _, layout := range []string{"2006-01-02T15:04:05Z07:00", "2006-01-02T15:04:05Z0700", "2006-01-02T15:04:05"} {
		if t, err := time.Parse(layout, s); err == nil {
			return t, true
		}
	}
	return time.Time{}, false
}

// profileValue turns a property's JSON into CleverTap's typed form: times as
// $D_<seconds>, lists as a $set of texts. ok is false for what it has no form for.
func profileValue(raw []byte) (out []byte, ok bool) {
	switch raw[0] {
	case '"':
		s, ok := text(raw)
		if !ok || len(s) > maxValue {
			return nil, false
		}
		if t, isTime := parseTime(s); isTime {
			return quote("$D_" + strconv.FormatInt(t.Unix(), 10)), true
		}
		return raw, true
	case '{':
		return nil, false
	case '[':
		var items []any
		if json.Unmarshal(raw, &items) != nil || len(items) > 100 {
			return nil, false
		}
		texts := make([]string, 0, len(items))
		for _, it := range items {
			var s string
			switch v := it.(type) {
			case string:
				s = v
			case float64:
				s = strconv.FormatFloat(v, 'f', -1, 64)
			case bool:
				s = strconv.FormatBool(v)
			default:
				return nil, false
			}
			if len(s) > maxValue {
				return nil, false
			}
			if !slices.Contains(texts, s) {
				texts = append(texts, s)
			}
		}
		b, err := json.Marshal(map[string][]string{"$set": texts})
		return b, err == nil
	}
	return raw, true
}

// fields writes the columns of a user as members of a JSON object, each with a
// leading comma. typed chooses CleverTap's profile form over Mixpanel's.
func fields(b []byte, columns []column, values [][]byte, typed bool) (out []byte, warnings []string) {
	warn := func(kind string) {
		if !slices.Contains(warnings, kind) {
			warnings = append(warnings, kind)
		}
	}
	for i, c := range columns {
		if i >= len(values) || len(values[i]) == 0 || string(values[i]) == "null" {
			continue
		}
		raw := values[i]
		switch c.role {
		case email:
			s, ok := text(raw)
			if ok && s == "" {
				continue
			}
			if !ok || !validEmail(s) {
				warn(WarnEmail)
				continue
			}
		case phone:
			s, ok := text(raw)
			if ok && s == "" {
				continue
			}
			n, valid := normalPhone(s)
			if !ok || !valid {
				warn(WarnPhone)
				continue
			}
			raw = quote(n)
		default:
			if !typed {
				break
			}
			v, ok := profileValue(raw)
			if !ok {
				warn(WarnValue)
				continue
			}
			raw = v
		}
		key := c.partnerKey
		if typed {
			key = c.profileKey
		}
		b = append(b, ',')
		b = append(b, key...)
		b = append(b, raw...)
	}
	return b, warnings
}

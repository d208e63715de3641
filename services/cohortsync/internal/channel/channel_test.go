package channel_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/channel"
)

var columns = []channel.Column{{Property: "$email"}, {Property: "$first_name"}, {Property: "$last_name"}, {Property: "$phone"}, {Property: "Plan", Field: "plan"}, {Property: "Joined"}, {Property: "Tags"}, {Property: "Age2"}, {Property: "Deep"}}

func member(partner string, cols ...string) channel.Member {
	m := channel.Member{UserNo: 1, DistinctID: "986791", PartnerID: partner}
	for _, c := range cols {
		m.Columns = append(m.Columns, []byte(c))
	}
	return m
}

func TestPartnerMemberHasMixpanelsFields(t *testing.T) {
	c := channel.NewPartner(channel.Config{Columns: columns})
	e, skip := c.Encode(member("123456", `"a@example.org"`, `"A\"nn"`, `"B"`, `"+91 (98) 765-43210"`, `"gold"`, `"2026-01-02T03:04:05"`, `["x"]`, `7`, `{"a":1}`))
	require.Empty(t, skip)
	require.Equal(t, "123456", e.Identifier)
	require.JSONEq(t, `{"mixpanel_distinct_id":"986791","$CleverTap_user_id":"123456","email":"a@example.org","first_name":"A\"nn","last_name":"B","phone_number":"+919876543210",
		"plan":"gold","Joined":"2026-01-02T03:04:05","Tags":["x"],"Age2":7,"Deep":{"a":1}}`, string(e.Record))
	require.JSONEq(t, `{"mixpanel_distinct_id":"x","$CleverTap_user_id":"x"}`, string(c.Removal("x")))
}

func TestUploadRecordHasCleverTapsTypes(t *testing.T) {
	c := channel.NewCustomList(channel.Config{Columns: columns})
	e, skip := c.Encode(member("", `"a@example.org"`, `"Ann"`, "", `"+919876543210"`, `true`, `"2026-01-02T03:04:05"`, `["x",1,"x"]`, `7.5`, `{"a":1}`))
	require.Empty(t, skip)
	require.JSONEq(t, `{"type":"profile","identity":"986791","profileData":{"Email":"a@example.org","first_name":"Ann","Phone":"+919876543210","plan":true,"Joined":"$D_1767323045","Tags":{"$set":["x","1"]},"Age2":7.5}}`, string(e.Record))
	require.Equal(t, []string{channel.WarnValue}, e.Warnings, "an object has no form there")
	e, _ = c.Encode(member("", "", "", "", ""))
	require.JSONEq(t, `{"type":"profile","identity":"986791","profileData":{}}`, string(e.Record))
	require.Equal(t, "i,\"a,\"\"b\"\n", c.PublishLine(`a,"b`))
}

func TestAPISegmentHasTheProfilesOfTheCustomListAndRemovesByIdentity(t *testing.T) {
	c, list := channel.NewAPISegment(channel.Config{Columns: columns}), channel.NewCustomList(channel.Config{Columns: columns})
	m := member("123456", `"a@example.org"`, `"Ann"`, "", `"+919876543210"`, `true`)
	got, skip := c.Encode(m)
	want, _ := list.Encode(m)
	require.Empty(t, skip)
	require.Equal(t, want, got)
	require.JSONEq(t, `{"identity":"a\"b"}`, string(c.Removal(`a"b`)))
	require.True(t, c.Traits().ByName())
	require.False(t, list.Traits().ByName())
	require.False(t, channel.NewPartner(channel.Config{}).Traits().ByName())
}

func TestARecordIsAmendedOnlyOfTheFieldItWasRefusedFor(t *testing.T) {
	c := channel.NewAPISegment(channel.Config{Columns: columns}).(channel.Amender)
	const rec = `{"type":"profile","identity":"a","profileData":{"Email":"a@example.org","Phone":"+919876543210","n":9007199254740993}}`
	got, warning := c.Amend([]byte(rec), 515)
	require.JSONEq(t, `{"type":"profile","identity":"a","profileData":{"Phone":"+919876543210","n":9007199254740993}}`, string(got))
	require.Contains(t, string(got), "9007199254740993", "other values as they were")
	require.Equal(t, channel.WarnEmail, warning)
	again, _ := c.Amend(got, 515)
	require.Nil(t, again, "there is nothing left to leave out")
	got, warning = c.Amend(got, 516)
	require.JSONEq(t, `{"type":"profile","identity":"a","profileData":{"n":9007199254740993}}`, string(got))
	require.Equal(t, channel.WarnPhone, warning)
	for _, code := range []int{514, 520, 523, 555, 0} {
		got, _ := c.Amend([]byte(rec), code)
		require.Nil(t, got, code)
	}
}

func TestBadEmailAndPhoneAreLeftOutWithAWarning(t *testing.T) {
	c := channel.NewCustomList(channel.Config{Columns: columns})
	for _, bad := range []string{"x", "@example.org", "a@b", "a b@example.org", "a@exa mple.org", "a@example..org", "a@example.org.", ".a@example.org", "a@-x.org", "a@b@example.org", "ä@example.org", strings.Repeat("a", 65) + "@example.org"} {
		e, skip := c.Encode(member("", `"`+bad+`"`, "", "", `"12"`))
		require.Empty(t, skip)
		require.NotContains(t, string(e.Record), "Email", bad)
		require.Equal(t, []string{channel.WarnEmail, channel.WarnPhone}, e.Warnings)
	}
	for _, good := range []string{"a@example.org", "first.last+tag@sub.example.co.uk", "x_y-z@ex-ample.io"} {
		e, _ := c.Encode(member("", `"`+good+`"`))
		require.Contains(t, string(e.Record), good)
		require.Empty(t, e.Warnings)
	}
	e, _ := c.Encode(member("", `42`))
	require.Equal(t, []string{channel.WarnEmail}, e.Warnings)
}

func TestIdentityIsThePartnerIdElseTheCanonicalOne(t *testing.T) {
	c := channel.NewPartner(channel.Config{})
	for _, bad := range []string{"undefined", "NULL", "na", "N/A", "0", "nil", "-1", "Infinity", "NaN", "empty", "xxxxxx", "none", "  ", strings.Repeat("x", 1024)} {
		_, skip := c.Encode(channel.Member{DistinctID: "d", PartnerID: bad})
		require.Equal(t, channel.SkipInvalidIdentifier, skip, bad)
		_, skip = c.Encode(channel.Member{DistinctID: bad})
		require.Equal(t, channel.SkipInvalidIdentifier, skip, bad)
	}
	_, skip := c.Encode(channel.Member{})
	require.Equal(t, channel.SkipNoIdentifier, skip)
	_, skip = c.Encode(channel.Member{DistinctID: "d", PartnerIDInvalid: true})
	require.Equal(t, channel.SkipInvalidIdentifier, skip)
	_, skip = c.Encode(channel.Member{DistinctID: "d", PartnerIDConflict: true})
	require.Equal(t, channel.SkipIdentifierConflict, skip)
}

package cohortsync_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/cohortbridge/cohortbridge/sandbox"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/benchkit"
)

// upload makes profiles at CleverTap, as an app would have.
func (r *rig) upload(records string) {
	r.t.Helper()
	resp := r.post(uploadPath, `{"d":[`+records+`]}`)
	require.Equal(r.t, "success", resp["status"])
}

// The documented cases of who a user is at CleverTap
// (https://docs.clevertap.com/docs/mixpanel-integration, "Scenarios"), and what
// surrounds them.
func TestAUserIsTheCleverTapProfileTheDocumentationSays(t *testing.T) {
	cases := []struct {
		name string
		// known is a profile that is there before, by its identity; other is a
		// profile that must stay out.
		known, other string
		user         benchkit.User
		// want is the identity in the segment, empty for none, and why not.
		want, skipped string
	}{
		{name: "the partner id is known", known: "123456", other: "986791", user: benchkit.User{PartnerID: "123456", DistinctID: "986791"}, want: "123456"},
		{name: "the partner id is new", user: benchkit.User{PartnerID: "123456", DistinctID: "986791"}, want: "123456"},
		{name: "the partner id misses, the other would do", other: "986791", user: benchkit.User{PartnerID: "123456", DistinctID: "986791"}, want: "123456"},
		{name: "no partner id, the distinct id is known", known: "123456", user: benchkit.User{DistinctID: "123456"}, want: "123456"},
		{name: "no partner id, the distinct id is new", user: benchkit.User{DistinctID: "123456"}, want: "123456"},
		{name: "ids are compared as they are written", other: "ABC", user: benchkit.User{PartnerID: "abc", DistinctID: "d"}, want: "abc"},
		{name: "the partner id is no id", other: "986791", user: benchkit.User{PartnerID: "N/A", DistinctID: "986791"}, skipped: "invalid_identifier"},
		{name: "the partner id is someone else's", known: "123456", user: benchkit.User{PartnerID: "123456", DistinctID: "986791", Conflict: true}, skipped: "identifier_conflict"},
		{name: "neither is an id", user: benchkit.User{DistinctID: "undefined"}, skipped: "invalid_identifier"},
		{name: "no profile at all", other: "986791", skipped: "anonymous"},
	}
	eachChannel(t, func(t *testing.T, kind channelKind) {
		r := newRig(t, kind, sandbox.Knobs{}, nil)
		for i, tc := range cases {
			// Each case has ids of its own.
			own := func(id *string) {
				if *id != "" && *id != "N/A" && *id != "undefined" {
					*id = fmt.Sprintf("%s-%d", *id, i)
				}
			}
			for _, id := range []*string{&tc.known, &tc.other, &tc.user.PartnerID, &tc.user.DistinctID, &tc.want} {
				own(id)
			}
			for _, id := range []string{tc.known, tc.other} {
				if id != "" {
					r.upload(`{"type":"profile","identity":"` + id + `","profileData":{"before":"yes","Email":"before@example.org"}}`)
				}
			}
			no := uint64(i + 1)
			if tc.skipped != "anonymous" {
				tc.user.Properties = map[string]any{"$email": "new@example.org", "$phone": "+919876543210"}
				r.world.SetUser(no, tc.user)
			}
			r.world.SetLeaf(tc.name, no)
			run := r.ok(r.run(r.sync(tc.name, oneTime)))
			if tc.skipped != "" {
				require.Equal(t, map[string]int64{tc.skipped: 1}, run.GetTotals().GetSkippedByReason(), tc.name)
				require.Empty(t, r.segment(tc.name), tc.name)
			} else {
				require.Equal(t, []string{tc.want}, r.segment(tc.name), tc.name)
				got := r.profile(tc.want)
				require.Equal(t, "new@example.org", got["Email"], "%s: an e-mail that is sent replaces the one there", tc.name)
				require.Equal(t, "+919876543210", got["Phone"], tc.name)
				if tc.known != "" {
					require.Equal(t, "yes", got["before"], "%s: the profile that was there joined, not a new one", tc.name)
				} else {
					require.NotContains(t, got, "before", tc.name)
				}
			}
			if tc.other != "" {
				require.Equal(t, map[string]any{"before": "yes", "Email": "before@example.org"}, r.profile(tc.other), "%s: another profile is left alone", tc.name)
			}
		}
	})
}

// Partner Sync and Segment Membership Change are what live campaigns listen to: one
// event a user and change, none for who stays.
func TestEachChannelRaisesTheEventCampaignsListenTo(t *testing.T) {
	for kind, want := range map[channelKind][2]string{
		partner:    {"Partner Sync Added", "Partner Sync Removed"},
		apiSegment: {"Segment Membership Change ADD", "Segment Membership Change REMOVE"},
	} {
		t.Run(kind.String(), func(t *testing.T) {
			r := newRig(t, kind, sandbox.Knobs{}, nil)
			all := r.people(10)
			r.world.SetLeaf("Buy", all...)
			s := r.sync("Buy", dynamic)
			r.ok(r.run(s))
			r.world.SetLeaf("Buy", all[3:]...)
			r.ok(r.run(s))
			r.ok(r.run(s))
			events := get[sandbox.Statistics](r, "/sandbox/statistics").Events
			require.EqualValues(t, 10, events[want[0]])
			require.EqualValues(t, 3, events[want[1]])
		})
	}
	r := newRig(t, customList, sandbox.Knobs{}, nil)
	r.world.SetLeaf("Buy", r.people(3)...)
	r.ok(r.run(r.sync("Buy", oneTime)))
	require.Empty(t, get[sandbox.Statistics](r, "/sandbox/statistics").Events, "a list raises none")
}

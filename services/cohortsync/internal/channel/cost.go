package channel

// Cost is what CleverTap counts for one user, in data points: an estimate, by what its
// documents say of events, their properties and profile updates
// (https://docs.clevertap.com/docs/mixpanel-integration,
// https://docs.clevertap.com/docs/api-segments).
type Cost struct{ Add, Update, Remove int64 }

// CostOf is the cost of a channel by its name; zero for an unknown one.
func CostOf(name string) Cost {
	switch name {
	case "PARTNER": // the event Partner Sync with five properties
		return Cost{Add: 6, Update: 6, Remove: 6}
	case "CUSTOM_LIST": // a profile update; the list costs nothing
		return Cost{Add: 1, Update: 1}
	case "API_SEGMENT": // a profile update, and the event Segment Membership Change with four properties
		return Cost{Add: 6, Update: 1, Remove: 5}
	}
	return Cost{}
}

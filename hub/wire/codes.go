package wire

// The reason codes that are only understood or only sent within this package's
// tables; packet.go has those that the hub itself uses.
const (
	continueAuthentication     Code = 0x18
	reAuthenticate             Code = 0x19
	serverMoved                Code = 0x9D
	maximumConnectTime         Code = 0xA0
	subscriptionIDsUnsupported Code = 0xA1
	wildcardsUnsupported       Code = 0xA2
)

// ackCode reports whether sender may use code in an acknowledgement of kind
// (MQTT 5.0 tables 3-4 to 3-7).
func ackCode(kind Type, sender direction, code Code) bool {
	if kind == TypePubrel || kind == TypePubcomp {
		return code == Success || code == PacketIdentifierNotFound
	}
	switch code {
	case NoMatchingSubscribers:
		return sender&fromServer != 0
	case Success, UnspecifiedError, ImplementationSpecificError, NotAuthorized, TopicNameInvalid,
		PacketIdentifierInUse, QuotaExceeded, PayloadFormatInvalid:
		return true
	}
	return false
}

// subackCode reports whether code is one of a SUBACK (MQTT 5.0 table 3-8,
// MQTT 3.1.1 [MQTT-3.9.3-2]).
func subackCode(version byte, code Code) bool {
	switch code {
	case 0, 1, 2, UnspecifiedError:
		return true
	case ImplementationSpecificError, NotAuthorized, TopicFilterInvalid, PacketIdentifierInUse, QuotaExceeded,
		SharedNotSupported, subscriptionIDsUnsupported, wildcardsUnsupported:
		return version == V5
	}
	return false
}

// unsubackCode reports whether code is one of an UNSUBACK (MQTT 5.0 table 3-9).
func unsubackCode(code Code) bool {
	switch code {
	case Success, NoSubscriptionExisted, UnspecifiedError, ImplementationSpecificError, NotAuthorized,
		TopicFilterInvalid, PacketIdentifierInUse:
		return true
	}
	return false
}

// disconnectCode reports whether sender may use code in a DISCONNECT (MQTT 5.0
// table 3-10).
func disconnectCode(sender direction, code Code) bool {
	switch code {
	case Success, UnspecifiedError, MalformedPacket, ProtocolError, ImplementationSpecificError, TopicNameInvalid,
		ReceiveMaximumExceeded, TopicAliasInvalid, PacketTooLarge, MessageRateTooHigh, QuotaExceeded,
		AdministrativeAction, PayloadFormatInvalid:
		return true
	case DisconnectWithWill:
		return sender&fromClient != 0
	case NotAuthorized, ServerBusy, ServerShuttingDown, KeepAliveTimeout, SessionTakenOver, TopicFilterInvalid,
		RetainNotSupported, QoSNotSupported, UseAnotherServer, serverMoved, SharedNotSupported,
		ConnectionRateExceeded, maximumConnectTime, subscriptionIDsUnsupported, wildcardsUnsupported:
		return sender&fromServer != 0
	}
	return false
}

// authCode reports whether sender may use code in an AUTH (MQTT 5.0 table 3-11).
func authCode(sender direction, code Code) bool {
	switch code {
	case Success:
		return sender&fromServer != 0
	case continueAuthentication:
		return true
	case reAuthenticate:
		return sender&fromClient != 0
	}
	return false
}

// connackCode reports whether code is one of a 5.0 CONNACK (MQTT 5.0 table 3-1).
func connackCode(code Code) bool {
	switch code {
	case Success, UnspecifiedError, MalformedPacket, ProtocolError, ImplementationSpecificError,
		UnsupportedProtocolVersion, ClientIdentifierNotValid, BadUserNameOrPassword, NotAuthorized,
		ServerUnavailable, ServerBusy, Banned, BadAuthenticationMethod, TopicNameInvalid, PacketTooLarge,
		QuotaExceeded, PayloadFormatInvalid, RetainNotSupported, QoSNotSupported, UseAnotherServer, serverMoved,
		ConnectionRateExceeded:
		return true
	}
	return false
}

// The return codes of a 3.1.1 CONNACK (MQTT 3.1.1 table 3.1).
const (
	returnVersion byte = iota + 1
	returnIdentifier
	returnUnavailable
	returnBadLogin
	returnNotAuthorized
	lastReturnCode = returnNotAuthorized
)

// returnCode gives a reason code's nearest 3.1.1 return code; ok is false if
// there is none, and then no CONNACK may be sent [MQTT-3.2.2-6].
func returnCode(code Code) (b byte, ok bool) {
	switch code {
	case Success:
		return 0, true
	case UnsupportedProtocolVersion:
		return returnVersion, true
	case ClientIdentifierNotValid:
		return returnIdentifier, true
	case ServerUnavailable, ServerBusy, ServerShuttingDown, UseAnotherServer, serverMoved, QuotaExceeded, ConnectionRateExceeded:
		return returnUnavailable, true
	case BadUserNameOrPassword:
		return returnBadLogin, true
	case NotAuthorized, Banned, BadAuthenticationMethod:
		return returnNotAuthorized, true
	}
	return 0, false
}

// reasonCode is the other way round.
func reasonCode(b byte) Code {
	switch b {
	case returnVersion:
		return UnsupportedProtocolVersion
	case returnIdentifier:
		return ClientIdentifierNotValid
	case returnUnavailable:
		return ServerUnavailable
	case returnBadLogin:
		return BadUserNameOrPassword
	case returnNotAuthorized:
		return NotAuthorized
	}
	return Success
}
